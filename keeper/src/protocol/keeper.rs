//! wasmkeeper's protocol: `POST /` with `{"args":["a","b"]}` answers `{"status":0,"output":["line"]}`,
//! or `{"status":1,"error":"..."}`.
//!
//! Beside `args` there may be `env`, an object, and `stdin`, a string. `?verbose=1` adds `exit_code` and
//! `stderr`. What is no UTF-8 in the output is replaced by U+FFFD.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fmt;

use hyper::header::{ALLOW, HeaderValue};
use hyper::{Method, Response, StatusCode, Uri};
use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Base, Failure, c_string, response};
use crate::call::Call;
use crate::front::Body;

/// The type of every answer.
pub const JSON: &str = "application/json";

/// How many arguments a request may have. A body has room for millions, each of which would take ten
/// times its bytes.
const MAX_ARGS: usize = 1 << 16;
/// How many variables.
const MAX_ENV: usize = 1 << 10;

/// A request's body.
#[derive(Debug, Default, Deserialize)]
struct Request {
    #[serde(default)]
    args: Args,
    #[serde(default)]
    env: Env,
    #[serde(default)]
    stdin: String,
}

/// No more than [`MAX_ARGS`].
#[derive(Debug, Default)]
struct Args(Vec<String>);

impl<'de> Deserialize<'de> for Args {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Strings;
        impl<'de> Visitor<'de> for Strings {
            type Value = Args;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of strings")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Args, A::Error> {
                let mut args = Vec::new();
                while let Some(arg) = list.next_element()? {
                    if args.len() == MAX_ARGS {
                        return Err(Error::custom(format_args!("more than {MAX_ARGS} args")));
                    }
                    args.push(arg);
                }
                Ok(Args(args))
            }
        }
        deserializer.deserialize_seq(Strings)
    }
}

/// No more than [`MAX_ENV`]; of two of a name the last.
#[derive(Debug, Default)]
struct Env(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Env {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Variables;
        impl<'de> Visitor<'de> for Variables {
            type Value = Env;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Env, A::Error> {
                let mut env = BTreeMap::new();
                while let Some((name, value)) = map.next_entry()? {
                    env.insert(name, value);
                    if env.len() > MAX_ENV {
                        return Err(Error::custom(format_args!("more than {MAX_ENV} variables")));
                    }
                }
                Ok(Env(env))
            }
        }
        deserializer.deserialize_map(Variables)
    }
}

/// What a request wants.
#[derive(Debug, Default, Eq, PartialEq)]
pub struct Wanted {
    /// The call, whose streams are still to be named.
    pub call: Call,
    /// What its standard input has.
    pub stdin: Vec<u8>,
}

/// What came of a call.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Its standard output.
    pub output: Vec<u8>,
    /// Its standard error, if it was asked for.
    pub stderr: Option<Vec<u8>>,
    /// Why it is none that was hoped for.
    pub failure: Option<Failure>,
}

#[derive(Serialize)]
struct Answer<'a> {
    status: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<Lines<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stderr: Option<std::borrow::Cow<'a, str>>,
}

/// Checks where a request goes, before its body is read. The answer of whatever is not the function.
pub fn misplaced(method: &Method, uri: &Uri) -> Option<Response<Body>> {
    if uri.path() != "/" {
        let failure = Failure::Request(StatusCode::NOT_FOUND, format!("no {}", uri.path()));
        return Some(answer(&Outcome { failure: Some(failure), ..Outcome::default() }));
    }
    if method != Method::POST {
        let reason = format!("{method} is not answered, POST is");
        let failure = Failure::Request(StatusCode::METHOD_NOT_ALLOWED, reason);
        let mut answer = answer(&Outcome { failure: Some(failure), ..Outcome::default() });
        answer.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
        return Some(answer);
    }
    None
}

/// Whether a request asks for more than the output.
pub fn is_verbose(uri: &Uri) -> bool {
    let query = uri.query().unwrap_or_default();
    query.split('&').any(|pair| matches!(pair, "verbose" | "verbose=1" | "verbose=true"))
}

/// What a request's body wants. An empty one wants nothing in particular.
///
/// # Errors
/// It is malformed: 400.
pub fn wanted(base: &Base, body: &[u8]) -> Result<Wanted, Failure> {
    let request: Request = match body.trim_ascii() {
        [] => Request::default(),
        body => serde_json::from_slice(body).map_err(|error| {
            Failure::Request(StatusCode::BAD_REQUEST, format!("the request's body: {error}"))
        })?,
    };
    let mut args = base.args.clone();
    for arg in request.args.0 {
        args.push(c_string("args", arg)?);
    }
    let mut env = base.env.clone();
    for (name, value) in request.env.0 {
        if name.is_empty() || name.contains('=') {
            let reason = format!("env: not a variable's name: {name:?}");
            return Err(Failure::Request(StatusCode::BAD_REQUEST, reason));
        }
        let begin = [name.as_bytes(), b"="].concat();
        env.retain(|entry| !entry.as_bytes().starts_with(&begin));
        env.push(c_string("env", [begin, value.into_bytes()].concat())?);
    }
    let stdin = request.stdin.into_bytes();
    let call = Call { args, env, stdin: !stdin.is_empty(), stderr: false };
    Ok(Wanted { call, stdin })
}

/// The answer to a request.
pub fn answer(outcome: &Outcome) -> Response<Body> {
    let verbose = outcome.stderr.is_some();
    let exit_code = match &outcome.failure {
        Some(Failure::Exit(status)) => Some(*status),
        None if verbose => Some(0),
        _ => None,
    };
    // What was written before a failure may say why.
    let tells = match &outcome.failure {
        None => true,
        Some(Failure::Request(..) | Failure::Refused(_)) => false,
        Some(_) => verbose || !outcome.output.is_empty(),
    };
    let text;
    let output = match tells {
        true => {
            text = String::from_utf8_lossy(&outcome.output);
            Some(Lines(&text))
        }
        false => None,
    };
    let answer = Answer {
        status: u8::from(outcome.failure.is_some()),
        error: outcome.failure.as_ref().map(ToString::to_string),
        exit_code,
        output,
        stderr: outcome.stderr.as_deref().map(String::from_utf8_lossy),
    };
    // Strings and numbers: nothing that could not be written.
    let body = serde_json::to_vec(&answer).unwrap_or_default();
    match &outcome.failure {
        None => response(StatusCode::OK, JSON, body),
        Some(failure) => failure.response(JSON, body),
    }
}

/// An array of a text's lines, none of which is held by itself: there may be millions.
struct Lines<'a>(&'a str);

impl Serialize for Lines<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = self.0.strip_suffix('\n').unwrap_or(self.0);
        // No line, where there is nothing; one without a letter, where there is its end.
        let lines = (!self.0.is_empty()).then(|| text.split('\n'));
        serializer.collect_seq(lines.into_iter().flatten())
    }
}

/// The arguments of a call begin with this.
pub fn program() -> CString {
    c"program".to_owned()
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    fn base() -> Base {
        Base { args: vec![program()], env: vec![c"A=1".to_owned(), c"AB=2".to_owned()] }
    }

    fn text(outcome: &Outcome) -> String {
        let body = answer(outcome).into_body().collect();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        String::from_utf8(runtime.block_on(body).unwrap().to_bytes().to_vec()).unwrap()
    }

    #[test]
    fn arguments_environment_and_input() {
        let wanted =
            wanted(&base(), br#"{"args":["a","\u00e4 b"],"env":{"A":"x=y"},"stdin":"in"}"#);
        let wanted = wanted.unwrap();
        assert_eq!(wanted.call.args, [c"program".to_owned(), c"a".into(), c"\xc3\xa4 b".into()]);
        assert_eq!(wanted.call.env, [c"AB=2".to_owned(), c"A=x=y".into()]);
        assert_eq!((wanted.stdin.as_slice(), wanted.call.stdin), (&b"in"[..], true));
    }

    #[test]
    fn an_empty_body_has_no_arguments() {
        for body in [&b""[..], b" \r\n", b"{}"] {
            assert_eq!(wanted(&base(), body).unwrap().call.args, base().args);
        }
    }

    #[test]
    fn malformed_bodies() {
        let deep = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
        let in_args = [&b"{\"args\":"[..], &deep, b"}"].concat();
        for body in [
            &b"{"[..],
            b"[]x",
            b"{\"args\":[1]}",
            b"{\"args\":\"a\"}",
            b"{\"args\":[\"\xff\"]}",
            b"{\"args\":[],\"args\":[]}",
            b"{\"args\":[\"a\\u0000b\"]}",
            b"{\"env\":{\"A=B\":\"\"}}",
            b"{\"env\":{\"\":\"\"}}",
            b"null",
            &deep,
            &in_args,
        ] {
            let failure = wanted(&base(), body).unwrap_err();
            assert_eq!(failure.status(), StatusCode::BAD_REQUEST, "{:?}", body.get(..20));
            assert!(
                text(&Outcome { failure: Some(failure), ..Outcome::default() })
                    .starts_with(r#"{"status":1,"error":""#)
            );
        }
    }

    #[test]
    fn not_as_many_as_there_is_room_for() {
        let args = |count: usize| format!("{{\"args\":[\"\"{}]}}", ",\"\"".repeat(count - 1));
        assert_eq!(
            wanted(&base(), args(MAX_ARGS).as_bytes()).unwrap().call.args.len(),
            1 + MAX_ARGS
        );
        let env = |count: usize| {
            let entries: Vec<_> = (0..count).map(|number| format!("\"N{number}\":\"\"")).collect();
            format!("{{\"env\":{{{}}}}}", entries.join(","))
        };
        assert_eq!(wanted(&base(), env(MAX_ENV).as_bytes()).unwrap().call.env.len(), 2 + MAX_ENV);
        for body in [args(MAX_ARGS + 1), env(MAX_ENV + 1)] {
            let error = wanted(&base(), body.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("more than"), "{error}");
        }
    }

    #[test]
    fn answers() {
        let of = |output: &[u8]| Outcome { output: output.to_vec(), ..Outcome::default() };
        assert_eq!(text(&of(b"")), r#"{"status":0,"output":[]}"#);
        assert_eq!(text(&of(b"\n")), r#"{"status":0,"output":[""]}"#);
        assert_eq!(text(&of(b"a\n\nb")), r#"{"status":0,"output":["a","","b"]}"#);
        assert_eq!(
            text(&of(b"\"\\\x01\t\xff\n")),
            "{\"status\":0,\"output\":[\"\\\"\\\\\\u0001\\t\u{fffd}\"]}"
        );
        let verbose = Outcome { stderr: Some(b"e\n".to_vec()), ..of(b"a\n") };
        assert_eq!(text(&verbose), r#"{"status":0,"exit_code":0,"output":["a"],"stderr":"e\n"}"#);
        let exit = Outcome { failure: Some(Failure::Exit(3)), ..of(b"a\n") };
        assert_eq!(
            text(&exit),
            r#"{"status":1,"error":"exit status 3","exit_code":3,"output":["a"]}"#
        );
        let trap = Outcome { failure: Some(Failure::Trap("unreachable".into())), ..of(b"") };
        assert_eq!(text(&trap), r#"{"status":1,"error":"wasm trap: unreachable"}"#);
    }

    #[test]
    fn only_post_to_the_root_is_the_function() {
        let of = |method: Method, uri: &'static str| {
            misplaced(&method, &Uri::from_static(uri)).map(|answer| answer.status().as_u16())
        };
        assert_eq!(of(Method::POST, "/?verbose=1"), None);
        assert_eq!(of(Method::GET, "/"), Some(405));
        assert_eq!(of(Method::POST, "/x"), Some(404));
        assert!(is_verbose(&Uri::from_static("/?a=b&verbose=1")));
        assert!(!is_verbose(&Uri::from_static("/?verbose=0")));
    }
}
