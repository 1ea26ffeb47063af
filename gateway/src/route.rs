//! Routes: which function answers a method and a path.
//!
//! Paths are compared in the one spelling that [`path::normalize`] gives them: what two servers might
//! understand differently has been refused by then.

use std::fmt;

use kiln_keeper::front::path;

/// A method, or any, and a path, or all paths below one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    method: Option<String>,
    /// Normalized; of a prefix with the slash at its end.
    path: String,
    prefix: bool,
}

impl Route {
    /// `[METHOD ]/PATH`, where a path that ends in `/*` stands for all below it, and for itself.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.split_once(' ') {
            Some((method, path)) if !text.starts_with('/') => {
                Self::new(Some(Self::check_method(method)?), path)
            }
            _ => Self::new(None, text),
        }
    }

    /// From its two parts; the method has been checked.
    ///
    /// # Errors
    /// What is wrong with the path.
    pub fn new(method: Option<String>, path: &str) -> Result<Self, String> {
        let (plain, prefix) = match path.strip_suffix('*') {
            Some(plain) if plain.ends_with('/') => (plain, true),
            Some(_) => return Err(format!("{path:?}: a * stands behind a slash only")),
            None => (path, false),
        };
        if plain.contains(['*', '?', '#']) {
            return Err(format!("{path:?}: has *, ? or # in it"));
        }
        let encoded = encoded(plain);
        let path = path::normalize(&encoded).map_err(|problem| format!("{path:?}: {problem}"))?;
        Ok(Self { method, path: path.into_owned(), prefix })
    }

    /// That it can be a request's method: upper-case letters and `-`.
    ///
    /// # Errors
    /// It cannot.
    pub fn check_method(method: &str) -> Result<String, String> {
        let allowed = |byte: u8| byte.is_ascii_uppercase() || byte == b'-';
        match !method.is_empty() && method.bytes().all(allowed) {
            true => Ok(method.to_owned()),
            false => Err(format!("{method:?} is not a method such as POST")),
        }
    }

    fn has(&self, path: &str) -> bool {
        match self.prefix {
            true => {
                path.starts_with(&self.path)
                    || self.path.strip_suffix('/').is_some_and(|itself| itself == path)
            }
            false => self.path == path,
        }
    }

    /// More is more particular: an exact path, a longer prefix, a method.
    fn rank(&self) -> (bool, usize, bool) {
        (!self.prefix, self.path.len(), self.method.is_some())
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(method) = &self.method {
            write!(f, "{method} ")?;
        }
        write!(f, "{}{}", self.path, if self.prefix { "*" } else { "" })
    }
}

/// As a client sends it: a person may write other letters than those of ASCII, and blanks.
fn encoded(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'!'..=b'~' => text.push(char::from(byte)),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

/// All routes, the more particular ones first.
#[derive(Debug)]
pub struct Table<T>(Vec<(Route, T)>);

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

/// What a table says of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Match<'a, T> {
    /// It is this one's.
    Found(&'a T),
    /// The path is known, for these methods.
    Method(Vec<&'a str>),
    /// Nobody's.
    None,
}

impl<T> Table<T> {
    /// Of these routes, of which no two are equal.
    pub fn new(mut routes: Vec<(Route, T)>) -> Self {
        routes.sort_by_key(|(route, _)| std::cmp::Reverse(route.rank()));
        Self(routes)
    }

    /// Whose a request is; `path` is normalized.
    pub fn find(&self, method: &str, path: &str) -> Match<'_, T> {
        let mut methods = Vec::new();
        for (route, target) in self.0.iter().filter(|(route, _)| route.has(path)) {
            match &route.method {
                None => return Match::Found(target),
                // RFC 9110, 9.3.2: HEAD is GET without the body.
                Some(own) if own == method || (method == "HEAD" && own == "GET") => {
                    return Match::Found(target);
                }
                Some(other) => methods.push(other.as_str()),
            }
        }
        match methods.is_empty() {
            true => Match::None,
            false => Match::Method(methods),
        }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &(Route, T)> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(routes: &[&'static str]) -> Table<&'static str> {
        Table::new(routes.iter().map(|text| (Route::parse(text).unwrap(), *text)).collect())
    }

    #[test]
    fn the_more_particular_wins() {
        let table = table(&["/*", "/api/*", "GET /api/*", "/api/v1/x", "POST /api/v1/x"]);
        for (method, path, route) in [
            ("GET", "/", "/*"),
            ("GET", "/other", "/*"),
            ("GET", "/api", "GET /api/*"),
            ("POST", "/api/", "/api/*"),
            ("POST", "/api/v1/x", "POST /api/v1/x"),
            ("GET", "/api/v1/x", "/api/v1/x"),
            ("HEAD", "/api/v1", "GET /api/*"),
            ("GET", "/apis", "/*"),
        ] {
            assert_eq!(table.find(method, path), Match::Found(&route), "{method} {path}");
        }
    }

    #[test]
    fn a_known_path_and_an_unknown_one() {
        let table = table(&["POST /sort", "PUT /sort"]);
        assert_eq!(table.find("GET", "/sort"), Match::Method(vec!["POST", "PUT"]));
        assert_eq!(table.find("POST", "/sort/"), Match::None);
        assert_eq!(table.find("POST", "/Sort"), Match::None);
    }

    #[test]
    fn wrong_routes() {
        for text in
            ["", "sort", "post /a", "POST", "POST  /a", "/a*", "/*/a", "/a?b", "/../a", "/%2f"]
        {
            assert!(Route::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn spellings_of_a_path_are_one() {
        let table = table(&["/sort", "/\u{e4} b"]);
        for (path, route) in
            [("/%73ort", "/sort"), ("/%C3%A4%20b", "/\u{e4} b"), ("/%c3%a4%20b", "/\u{e4} b")]
        {
            let path = path::normalize(path).unwrap();
            assert_eq!(table.find("GET", &path), Match::Found(&route), "{path}");
        }
    }
}
