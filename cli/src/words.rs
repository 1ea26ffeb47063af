//! The words of the command line, made into what clap takes: runc's flag parser (Go's) and crun's
//! (argp) take more.
//!
//! Only the words up to the container's id are looked at: what follows may be the command line of
//! another program.

use std::ffi::{OsStr, OsString};

/// Flags without a value, by their long names and by the short ones that are switches everywhere.
/// The test below tells which are missing.
const SWITCHES: [&str; 30] = [
    "--all",
    "--auto-dedup",
    "--debug",
    "--detach",
    "--ext-unix-sk",
    "--file-locks",
    "--force",
    "--help",
    "--ignore-paused",
    "--keep",
    "--lazy-pages",
    "--leave-running",
    "--link-remap",
    "--no-new-keyring",
    "--no-new-privs",
    "--no-pivot",
    "--no-subreaper",
    "--pre-dump",
    "--quiet",
    "--regex",
    "--rootless",
    "--shell-job",
    "--stats",
    "--systemd-cgroup",
    "--tcp-established",
    "--tcp-skip-in-flight",
    "--tty",
    "--version",
    "-h",
    "-v",
];

/// Short flags that are switches of some subcommands and take a value in others.
const SHORT_SWITCHES: [(&str, &[&str]); 6] = [
    ("-a", &["kill"]),
    ("-d", &["exec", "restore", "run"]),
    ("-f", &["delete"]),
    ("-q", &["list"]),
    ("-r", &["delete", "kill"]),
    ("-t", &["exec"]),
];

/// An empty value of these means that there is none: callers pass on what they have.
const MAY_BE_EMPTY: [&str; 8] = [
    "--console-socket",
    "--criu",
    "--log",
    "--page-server",
    "--parent-path",
    "--pid-file",
    "--pidfd-socket",
    "--work-path",
];

/// The words in clap's form. `-bundle` becomes `--bundle` (containerd's shim relies on it:
/// `-no-subreaper`), `--debug=true` becomes `--debug`, `--debug=false` and `--log=` go, `-?` and
/// `--usage` become `--help`.
pub fn normalize(words: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut words = words.into_iter();
    let mut out: Vec<OsString> = words.next().into_iter().collect();
    let mut command = None;
    while let Some(word) = words.next() {
        let Some(flag) = flag(&word) else {
            let last = word == "--" || command.is_some();
            command = word.to_str().map(str::to_owned);
            out.push(word);
            if last {
                break;
            }
            continue;
        };
        out.extend(normalize_flag(flag, command.as_deref(), &mut words));
    }
    out.extend(words);
    out
}

/// The value of the option `name` before the subcommand, in normalized words. For what is to be
/// said when clap cannot make sense of them.
pub fn global<'a>(words: &'a [OsString], name: &str) -> Option<&'a OsStr> {
    let mut found = None;
    let mut words = words.iter().skip(1);
    while let Some(word) = words.next() {
        let flag = word.to_str().filter(|word| word.starts_with('-'))?;
        found = match flag.split_once('=') {
            Some((flag, value)) if flag == name => Some(OsStr::new(value)),
            None if flag == name => words.next().map(OsString::as_os_str),
            None if !is_switch(flag, None) => {
                words.next();
                found
            }
            _ => found,
        };
        if found.is_some() {
            break;
        }
    }
    found
}

/// A word that is a flag, with two dashes if its name has several letters.
fn flag(word: &OsStr) -> Option<String> {
    let text = word.to_str()?;
    let name = text.strip_prefix('-').filter(|name| !name.is_empty() && *name != "-")?;
    Some(match text {
        "-?" | "--usage" => "--help".to_owned(),
        "-V" => "-v".to_owned(),
        _ if is_long(name) => format!("--{name}"),
        _ => text.to_owned(),
    })
}

fn is_long(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|c| c.is_ascii_lowercase())
        && chars.next().is_some_and(|c| c.is_ascii_lowercase() || c == '-')
}

/// The flag, with its value if that is the next word, or nothing if it says nothing.
fn normalize_flag(
    flag: String,
    command: Option<&str>,
    rest: &mut impl Iterator<Item = OsString>,
) -> Vec<OsString> {
    // `-bDIR`: nothing is taken from the rest.
    let attached = !flag.starts_with("--") && flag.chars().count() > 2;
    match flag.split_once('=') {
        Some((name, value)) if is_switch(name, command) => match value {
            "true" | "True" | "TRUE" | "t" | "T" | "1" => vec![name.into()],
            "false" | "False" | "FALSE" | "f" | "F" | "0" => Vec::new(),
            _ => vec![flag.into()],
        },
        Some((name, "")) if MAY_BE_EMPTY.contains(&name) => Vec::new(),
        None if !attached && !is_switch(&flag, command) => match rest.next() {
            Some(value) if value.is_empty() && MAY_BE_EMPTY.contains(&flag.as_str()) => Vec::new(),
            Some(value) => vec![flag.into(), value],
            None => vec![flag.into()],
        },
        _ => vec![flag.into()],
    }
}

fn is_switch(flag: &str, command: Option<&str>) -> bool {
    // `--rootless` has a value before the subcommand and none behind `spec`.
    if flag == "--rootless" {
        return command == Some("spec");
    }
    let short = SHORT_SWITCHES.iter().find(|(short, _)| *short == flag);
    let listed = |commands: &[&str]| command.is_some_and(|command| commands.contains(&command));
    SWITCHES.contains(&flag) || short.is_some_and(|(_, commands)| listed(commands))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn check(words: &[&str], wanted: &[&str]) {
        let own = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        assert_eq!(normalize(own(words)), own(wanted));
    }

    /// Whoever adds a switch to a subcommand adds it here as well.
    #[test]
    fn every_switch_is_known_and_nothing_else() {
        let mut cli = crate::Cli::command();
        cli.build();
        let check = |command: &clap::Command, name: Option<&str>| {
            for arg in command.get_arguments().filter(|arg| !arg.is_positional()) {
                let switch = !arg.get_action().takes_values();
                let long = arg.get_long_and_visible_aliases().unwrap_or_default();
                let short = arg.get_short_and_visible_aliases().unwrap_or_default();
                let flags = long.into_iter().map(|long| format!("--{long}"));
                for flag in flags.chain(short.into_iter().map(|short| format!("-{short}"))) {
                    assert_eq!(
                        is_switch(&flag, name),
                        switch,
                        "{flag} of {name:?}: see SWITCHES and SHORT_SWITCHES"
                    );
                }
            }
        };
        check(&cli, None);
        for command in cli.get_subcommands() {
            check(command, Some(command.get_name()));
        }
    }

    #[test]
    fn gos_single_dash_becomes_two() {
        check(
            &["kiln", "run", "-no-pivot", "-b", "x", "-pid-file=/p", "--", "-keep"],
            &["kiln", "run", "--no-pivot", "-b", "x", "--pid-file=/p", "--", "-keep"],
        );
        check(
            &["kiln", "create", "-b/x", "-f", "c", "id"],
            &["kiln", "create", "-b/x", "-f", "c", "id"],
        );
    }

    #[test]
    fn what_follows_the_id_is_left_alone() {
        check(
            &["kiln", "--root", "/r", "ps", "id", "-ef"],
            &["kiln", "--root", "/r", "ps", "id", "-ef"],
        );
        check(
            &["kiln", "exec", "-user", "1:1", "id", "ls", "-la", "--pid-file="],
            &["kiln", "exec", "--user", "1:1", "id", "ls", "-la", "--pid-file="],
        );
    }

    #[test]
    fn switches_may_have_values() {
        check(
            &["kiln", "--debug=true", "delete", "--all=false", "-f=1", "--log=x"],
            &["kiln", "--debug", "delete", "-f", "--log=x"],
        );
    }

    #[test]
    fn an_empty_value_is_none() {
        check(
            &["kiln", "--log=", "--log", "", "create", "--pid-file", "", "-console-socket=", "id"],
            &["kiln", "create", "id"],
        );
        check(&["kiln", "--root="], &["kiln", "--root="]);
    }

    #[test]
    fn crun_asks_for_help_otherwise() {
        check(&["kiln", "run", "-?"], &["kiln", "run", "--help"]);
        check(&["kiln", "--usage"], &["kiln", "--help"]);
    }

    #[test]
    fn global_options_are_found_before_the_subcommand() {
        let words = ["kiln", "--debug", "--root", "--log", "--log", "l", "run", "--log", "m"];
        let words = words.map(OsString::from);
        assert_eq!(global(&words, "--log"), Some(OsStr::new("l")));
        assert_eq!(global(&words, "--log-format"), None);
        let words = ["kiln", "--log-format=json", "run"].map(OsString::from);
        assert_eq!(global(&words, "--log-format"), Some(OsStr::new("json")));
        assert_eq!(global(&words, "--log"), None);
    }
}
