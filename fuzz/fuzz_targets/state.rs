//! state.json, with the config behind the state, and the text of the link that names init.

#![no_main]

use std::fs;

use kiln_runtime::process::Process;
use kiln_runtime::state::{ContainerDir, State, StateRoot, Status};
use tempfile::TempDir;

thread_local! {
    static CONTAINER: (TempDir, ContainerDir) = container();
}

#[expect(clippy::unwrap_used, reason = "before the first run")]
fn container() -> (TempDir, ContainerDir) {
    let home = tempfile::tempdir().unwrap();
    let dir = StateRoot::create(home.path()).unwrap().make(&"c".parse().unwrap()).unwrap();
    dir.unlock();
    (home, dir)
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(process) = String::from_utf8_lossy(bytes).parse::<Process>() {
        assert!(process.pid > 0);
        assert_eq!(process.to_string().parse(), Ok(process));
    }
    CONTAINER.with(|(home, dir)| {
        let written = fs::write(home.path().join("c/state.json"), bytes);
        assert!(written.is_ok());
        let state = dir.read();
        let whole = dir.read_with_config();
        if let Ok(Some(state)) = state {
            check(&state);
            assert!(!matches!(whole, Ok(None)));
        }
    });
});

fn check(state: &State) {
    assert!(!state.hook_input(Status::Creating).is_empty());
    assert_eq!(state.document(Status::Stopped).pid, 0);
    let written = serde_json::to_vec(state).unwrap_or_default();
    let again = serde_json::from_slice::<State>(&written);
    assert!(again.is_ok_and(|again| format!("{again:?}") == format!("{state:?}")), "{state:?}");
}
