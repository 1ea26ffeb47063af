//! systemd's manager: org.freedesktop.systemd1(5).

use std::time::Duration;

use super::connection::{Address, Connection, Failure};
use super::message::{Call, Refusal};
use super::value::Value;

/// How long systemd may take for one operation; runc's limit.
const PATIENCE: Duration = Duration::from_secs(30);

const SYSTEMD: &str = "org.freedesktop.systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
const BUS: &str = "org.freedesktop.DBus";
const JOB_REMOVED: &str = "type='signal',path='/org/freedesktop/systemd1',\
                           interface='org.freedesktop.systemd1.Manager',member='JobRemoved'";

/// A property's name and value.
pub(crate) type Property = (String, Value);

/// A connection to one systemd.
#[derive(Debug)]
pub(crate) struct Manager {
    connection: Connection,
    /// The cgroup that all its units are in; empty for the root.
    pub control_group: String,
    /// 252, say; 0 if it does not tell.
    pub version: u32,
}

/// How a job ended that was not `done`.
#[derive(Debug)]
pub(crate) enum StartFailure {
    /// A unit of the name is there, and not a failed one.
    Taken,
    /// Anything else, in words.
    Other(String),
}

impl From<Failure> for StartFailure {
    fn from(failure: Failure) -> Self {
        Self::Other(failure.to_string())
    }
}

impl Manager {
    /// Connects, and asks what must be known of this systemd.
    pub fn connect(address: &Address) -> Result<Self, Failure> {
        let mut connection = Connection::open(address, PATIENCE)?;
        // All at once: each answer waited for would be two switches between processes.
        let mut calls = Vec::new();
        if !connection.is_private() {
            calls.push(connection.send(&bus_call("Hello", &[]))?);
            let rule = [Value::Text(JOB_REMOVED.to_owned())];
            calls.push(connection.send(&bus_call("AddMatch", &rule))?);
            // Without a subscriber systemd sends no signals to a bus.
            calls.push(connection.send(&call("Subscribe", &[]))?);
        }
        let names = ["ControlGroup", "Version"].map(|name| property_names(MANAGER, name));
        for name in &names {
            calls.push(connection.send(&get(MANAGER_PATH, name))?);
        }
        let mut answers = Vec::new();
        for serial in calls {
            answers.push(connection.reply(serial)?);
        }
        let version = answers.pop().map(one_text).unwrap_or_default();
        let control_group = answers.pop().map(one_text).unwrap_or_default();
        let control_group = control_group.trim_end_matches('/').to_owned();
        Ok(Self { connection, control_group, version: number(&version) })
    }

    /// Starts a transient unit and waits until it is there.
    pub fn start(&mut self, unit: &str, properties: Vec<Property>) -> Result<(), StartFailure> {
        self.connection.extend(PATIENCE);
        let body = [
            Value::Text(unit.to_owned()),
            // Against what mode: a transient unit has no other jobs to conflict with.
            Value::Text("replace".to_owned()),
            property_list(properties),
            Value::Array("(sa(sv))".to_owned(), Vec::new()),
        ];
        let mut answer = self.call("StartTransientUnit", &body);
        if is_refused(&answer, "UnitExists") {
            // Perhaps the remains of a unit of this name that failed; as runc does.
            let _ = self.reset_failed(unit);
            answer = self.call("StartTransientUnit", &body);
        }
        if is_refused(&answer, "UnitExists") {
            return Err(StartFailure::Taken);
        }
        let ended = self.wait(answer?);
        if !matches!(&ended, Ok(result) if result == "done") {
            let _ = self.reset_failed(unit);
        }
        match ended?.as_str() {
            "done" => Ok(()),
            result => Err(StartFailure::Other(format!("its job ended as {result:?}"))),
        }
    }

    /// Changes a unit until it stops; not written to disk.
    pub fn set(&mut self, unit: &str, properties: Vec<Property>) -> Result<(), Failure> {
        self.connection.extend(PATIENCE);
        let body = [Value::Text(unit.to_owned()), Value::Bool(true), property_list(properties)];
        self.call("SetUnitProperties", &body).map(drop)
    }

    /// Stops a unit, waits, and makes systemd forget that it failed, if it did. That there is no
    /// such unit is success.
    pub fn stop(&mut self, unit: &str) -> Result<(), Failure> {
        self.connection.extend(PATIENCE);
        let body = [Value::Text(unit.to_owned()), Value::Text("replace".to_owned())];
        let answer = self.call("StopUnit", &body);
        if !is_refused(&answer, "NoSuchUnit") {
            let ended = answer.and_then(|answer| self.wait(answer));
            // A unit that cannot be stopped can still be forgotten.
            let _ = self.reset_failed(unit);
            return ended.map(drop);
        }
        Ok(())
    }

    /// Forgets that a unit failed.
    pub fn reset_failed(&mut self, unit: &str) -> Result<(), Failure> {
        self.call("ResetFailedUnit", &[Value::Text(unit.to_owned())]).map(drop)
    }

    /// The cgroup of a unit that has started.
    pub fn control_group_of(&mut self, unit: &str) -> Result<String, Failure> {
        let interface = match unit.ends_with(".slice") {
            true => "org.freedesktop.systemd1.Slice",
            false => "org.freedesktop.systemd1.Scope",
        };
        let names = property_names(interface, "ControlGroup");
        let answer = self.connection.call(&get(&unit_path(unit), &names))?;
        Ok(one_text(answer))
    }

    fn call(&mut self, member: &str, body: &[Value]) -> Result<Vec<Value>, Failure> {
        self.connection.call(&call(member, body))
    }

    /// Waits for the end of the job that a call has answered, and says how it ended.
    fn wait(&mut self, answer: Vec<Value>) -> Result<String, Failure> {
        let Some(Value::Path(job)) = answer.into_iter().next() else {
            return Err(Failure::Lost("it answered no job".to_owned()));
        };
        loop {
            let (member, body) = self.connection.signal()?;
            if let ("JobRemoved", [_, Value::Path(ended), _, Value::Text(result)]) =
                (member.as_str(), body.as_slice())
                && *ended == job
            {
                return Ok(result.clone());
            }
        }
    }
}

fn call<'a>(member: &'a str, body: &'a [Value]) -> Call<'a> {
    Call { destination: SYSTEMD, path: MANAGER_PATH, interface: MANAGER, member, body }
}

fn bus_call<'a>(member: &'a str, body: &'a [Value]) -> Call<'a> {
    Call { destination: BUS, path: "/org/freedesktop/DBus", interface: BUS, member, body }
}

fn get<'a>(path: &'a str, names: &'a [Value]) -> Call<'a> {
    Call { destination: SYSTEMD, path, interface: PROPERTIES, member: "Get", body: names }
}

fn property_names(interface: &str, name: &str) -> [Value; 2] {
    [interface, name].map(|text| Value::Text(text.to_owned()))
}

fn property_list(properties: Vec<Property>) -> Value {
    let pair =
        |(name, value)| Value::Struct(vec![Value::Text(name), Value::Variant(Box::new(value))]);
    Value::Array("(sv)".to_owned(), properties.into_iter().map(pair).collect())
}

/// The text in a variant; empty for anything else.
fn one_text(answer: Vec<Value>) -> String {
    match answer.into_iter().next() {
        Some(Value::Variant(value)) => match *value {
            Value::Text(text) => text,
            _ => String::new(),
        },
        _ => String::new(),
    }
}

fn is_refused<T>(answer: &Result<T, Failure>, error: &str) -> bool {
    let Err(Failure::Refused(Refusal { name, .. })) = answer else { return false };
    name.strip_prefix(SYSTEMD).and_then(|name| name.strip_prefix('.')) == Some(error)
}

/// The first number in a version such as `252.38-1~deb12u1` or `v245.4`.
fn number(version: &str) -> u32 {
    let digits = version.trim_start_matches(|c: char| !c.is_ascii_digit());
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().unwrap_or(0)
}

/// The object of a unit: its name with all but letters and digits as `_` and two hexadecimal
/// digits (sd_bus_path_encode(3)).
fn unit_path(unit: &str) -> String {
    let mut path = "/org/freedesktop/systemd1/unit/".to_owned();
    for (index, byte) in unit.bytes().enumerate() {
        match byte.is_ascii_alphabetic() || (index > 0 && byte.is_ascii_digit()) {
            true => path.push(byte.into()),
            false => path += &format!("_{byte:02x}"),
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_distributions_write_them() {
        for (text, version) in
            [("252.38-1~deb12u1", 252), ("v245.4-4ubuntu3", 245), ("239 (239-74.el8)", 239)]
        {
            assert_eq!(number(text), version);
        }
        assert_eq!(number(""), 0);
        assert_eq!(number("99999999999999"), 0);
    }

    #[test]
    fn unit_names_become_object_paths() {
        let path = unit_path("2cri-containerd-a_b.scope");
        assert_eq!(path, "/org/freedesktop/systemd1/unit/_32cri_2dcontainerd_2da_5fb_2escope");
    }
}
