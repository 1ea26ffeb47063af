//! Somebody who is not root, to run the binary under test as.

use std::fs;
use std::os::unix::fs::{PermissionsExt, lchown};
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::{Bundle, Cli, binary, command, reaper};

/// The virtual machine's user, who has subordinate ids and delegated cgroups, or one made up.
#[derive(Clone, Debug)]
pub struct User {
    /// User and group id.
    pub id: u32,
    /// The first of 65536 subordinate ids, where there are any.
    pub subordinate: Option<u32>,
}

/// Nobody's, on a machine without the virtual machine's user.
const MADE_UP: u32 = 47_110;
/// Runs a command in a delegated cgroup of the virtual machine's user.
const AS_USER: &str = "as-user";

impl User {
    /// The user of this machine that tests may be.
    ///
    /// # Errors
    /// Why a user cannot run the binary under test here.
    pub fn find() -> Result<Self, String> {
        static USER: OnceLock<Result<User, String>> = OnceLock::new();
        USER.get_or_init(Self::look).clone()
    }

    fn look() -> Result<Self, String> {
        let user = match command::exists(AS_USER).then(subordinate) {
            Some(subordinate) => Self { id: 1000, subordinate },
            None => Self { id: MADE_UP, subordinate: None },
        };
        let limit = fs::read_to_string("/proc/sys/user/max_user_namespaces");
        if limit.is_ok_and(|limit| limit.trim() == "0") {
            return Err("user namespaces are switched off".to_owned());
        }
        let path = binary::path();
        let words = user.plain();
        let mut test = Command::new(&words[0]);
        test.args(&words[1..]).args(["test", "-x"]).arg(path);
        match reaper::wait(&mut reaper::spawn(&mut test)).success() {
            true => Ok(user),
            false => Err(format!("user {} cannot reach {}", user.id, path.display())),
        }
    }

    /// Words before a command that is to run as this user, in the caller's cgroup.
    pub fn plain(&self) -> Vec<String> {
        let id = self.id.to_string();
        let words = [
            "setpriv",
            "--reuid",
            &id,
            "--regid",
            &id,
            "--clear-groups",
            "env",
            // The caller's are root's.
            "-u",
            "KILN_CACHE_DIR",
            "-u",
            "XDG_RUNTIME_DIR",
            "-u",
            "XDG_CACHE_HOME",
            "HOME=/nonexistent",
        ];
        words.map(str::to_owned).to_vec()
    }

    /// The same in a delegated cgroup of this user's; nothing on a machine without.
    pub fn delegated(&self) -> Option<Vec<String>> {
        command::exists(AS_USER).then(|| vec![AS_USER.to_owned()])
    }

    /// Gives a bundle, and the folder for its state, to this user: all that is in it now.
    pub fn own(&self, bundle: &Bundle) {
        own_all(bundle.home(), self.id);
    }
}

/// `user:100000:65536`
fn subordinate() -> Option<u32> {
    let text = fs::read_to_string("/etc/subuid").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("user:"))?;
    line.split_once(':')?.0.parse().ok()
}

fn own_all(path: &Path, id: u32) {
    lchown(path, Some(id), Some(id)).unwrap();
    if path.is_symlink() || !path.is_dir() {
        return;
    }
    for entry in fs::read_dir(path).unwrap().flatten() {
        own_all(&entry.path(), id);
    }
}

impl Bundle {
    /// A bundle as `spec --rootless` writes it for this user, whose container
    /// runs `sh -c script`. It becomes the user's when the container is made.
    pub fn rootless(user: &User, script: &str) -> Self {
        let mut bundle = Bundle::sh(script);
        let spec = tempfile::tempdir().unwrap();
        fs::set_permissions(spec.path(), fs::Permissions::from_mode(0o777)).unwrap();
        Cli::new(["spec", "--rootless"]).under(&user.plain()).dir(spec.path()).output().ok();
        let text = fs::read_to_string(spec.path().join("config.json")).unwrap();
        let process = bundle.config["process"].clone();
        bundle.config = serde_json::from_str(&text).unwrap();
        bundle.config["process"] = process;
        bundle
    }

    /// Maps 0 to the user, and the ids after it to the user's subordinate ones.
    ///
    /// # Panics
    /// If the user has none.
    pub fn subordinate_ids(self, user: &User) -> Self {
        let map: Value = json!([
            { "containerID": 0, "hostID": user.id, "size": 1 },
            { "containerID": 1, "hostID": user.subordinate.unwrap(), "size": 65536 },
        ]);
        self.set("/linux/uidMappings", map.clone()).set("/linux/gidMappings", map)
    }
}

/// The [`User`] to be, or skips the calling test.
#[macro_export]
macro_rules! needs_user {
    () => {
        match $crate::user::User::find() {
            Ok(user) => user,
            Err(reason) => $crate::skip!("{reason}"),
        }
    };
}
