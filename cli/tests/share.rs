//! The man pages and completions are complete, and those who are to read them can.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::Command;

#[path = "../examples/share.rs"]
mod share;

fn subcommands() -> Vec<String> {
    let command = kiln::command();
    let shown = command.get_subcommands().filter(|command| !command.is_hide_set());
    shown.map(|command| command.get_name().to_owned()).collect()
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    let (stdout, stderr) = (&output.stdout, &output.stderr);
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(stderr));
    assert!(stderr.is_empty(), "{command:?}: {}", String::from_utf8_lossy(stderr));
    Some(String::from_utf8_lossy(stdout).into_owned())
}

#[test]
fn every_subcommand_is_in_all_of_them() {
    let dir = tempfile::tempdir().unwrap();
    share::write(dir.path()).unwrap();
    let read = |path: &str| fs::read_to_string(dir.path().join(path)).unwrap();
    let all = read("man/man1/kiln.1");
    let scripts = [
        "bash-completion/completions/kiln",
        "zsh/site-functions/_kiln",
        "fish/vendor_completions.d/kiln.fish",
    ];
    assert!(subcommands().len() > 15);
    for name in subcommands() {
        assert!(all.contains(&format!("kiln\\-{name}(1)")), "{name}: {all}");
        assert!(read(&format!("man/man1/kiln-{name}.1")).contains(".SH OPTIONS"), "{name}");
        for script in scripts {
            assert!(read(script).contains(&name), "{name} is not in {script}");
        }
    }
    let run = read("man/man1/kiln-run.1");
    for option in ["\\-\\-bundle", "\\-\\-config", "\\-\\-pid\\-file"] {
        assert!(run.contains(option), "{option}: {run}");
    }
    check_man(dir.path());
    check_bash(&dir.path().join(scripts[0]));
}

/// Where man is there; it complains on stderr.
fn check_man(dir: &Path) {
    let mut man = Command::new("man");
    man.args(["--warnings", "-l"]).arg(dir.join("man/man1/kiln-run.1")).env("MANWIDTH", "80");
    if let Some(page) = output(&mut man) {
        assert!(page.contains("--pid-file") && page.contains("SYNOPSIS"), "{page}");
    }
}

fn check_bash(script: &Path) {
    let complete = |words: &str, at: usize| {
        let line = format!(
            "source {}; COMP_WORDS=({words}); COMP_CWORD={at}; \
             _kiln kiln \"${{COMP_WORDS[{at}]}}\" \"${{COMP_WORDS[{at}-1]}}\"; \
             echo ${{COMPREPLY[@]}}",
            script.display()
        );
        output(Command::new("bash").args(["-c", &line])).unwrap()
    };
    assert_eq!(complete("kiln del", 1), "delete\n");
    assert_eq!(complete("kiln run --conf", 2), "--config\n");
}
