use super::*;

fn parse(text: &str) -> Result<Config, Error> {
    Config::parse(text, Path::new("functions.toml"), Path::new("/etc/kiln"))
}

/// The message about a text.
fn problem(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

#[test]
fn an_empty_file_is_a_gateway_without_functions() {
    let config = parse("").unwrap();
    assert_eq!(config.gateway.listen.port(), 8080);
    assert!(config.gateway.admin.is_none() && config.functions.is_empty());
}

#[test]
fn a_function_has_defaults() {
    let config = parse("[[function]]\nname = 'sort'\nmodule = 'sort.wasm'\n").unwrap();
    let function = &config.functions[0];
    assert_eq!(function.source, Source::Module("/etc/kiln/sort.wasm".into()));
    assert_eq!((function.max, function.queue), (16, 256));
    assert!((1..=16).contains(&function.warm));
    assert_eq!(function.freeze_after, Some(Duration::from_secs(30)));
    assert_eq!(function.user, (65534, 65534));
}

#[test]
fn routes_come_from_both_places() {
    let config = parse(
        "[[function]]\nname = 'a'\nbundle = '/b'\nroutes = ['POST /a', '/api/*']\nstop_after = \
         'never'\n[[route]]\nfunction = 'a'\nmethod = 'GET'\npath = '/x'\n",
    )
    .unwrap();
    let routes: Vec<_> = config.routes.iter().map(|(route, _)| route.to_string()).collect();
    assert_eq!(routes, ["POST /a", "/api/*", "GET /x"]);
    assert_eq!(config.functions[0].stop_after, None);
}

#[test]
fn what_is_wrong_is_named_with_its_line_and_key() {
    let function = "[[function]]\nname = 'a'\nmodule = 'a.wasm'\n";
    let with = |line: &str| problem(&format!("{function}{line}\n"));
    for (line, message) in [
        ("max = 0", "functions.toml:4: max: 0 is not between 1 and 1000000"),
        ("timeout = 'soon'", "functions.toml:4: timeout: \"soon\" is not a duration"),
        ("timeout = 30", "functions.toml:4: timeout: invalid type: integer `30`"),
        ("speed = 1", "functions.toml:4: speed: unknown field `speed`"),
        ("protocol = 'fcgi'", "functions.toml:4: protocol: \"fcgi\" is neither"),
        ("routes = ['sort']", "functions.toml:4: routes: "),
        ("warm = 20", "functions.toml:4: warm: is more than max, which is 16"),
        ("bundle = 'b'", "functions.toml:4: bundle: there is a module"),
        ("limits = { memory = '1' }", "functions.toml:4: limits.memory: "),
        ("limits = { disk = '1' }", "functions.toml:4: limits: unknown field `disk`"),
        ("env = { A = 1 }", "functions.toml:4: env: invalid type"),
        ("dirs = ['/a']", "functions.toml:4: dirs: "),
        ("keep = 'hot'", "functions.toml:4: keep: "),
        ("reuse = 'x'", "functions.toml:4: reuse: expected true, false or a number"),
        ("reuse = 0", "functions.toml:4: reuse: 0 is not between 1 and"),
        ("user = 'root'", "functions.toml:4: user: "),
        ("timeout = ", "functions.toml:4: timeout: "),
        ("name = 'b'", "functions.toml:4: name: duplicate key"),
        ("routes = ['/a', '/a']", "functions.toml:4: routes: \"/a\" is a route of function \"a\""),
    ] {
        let said = with(line);
        assert!(said.starts_with(message), "{line}: {said}");
        assert!(!said.contains('\n'), "{said}");
    }
    for (text, message) in [
        ("[gateway]\nlisten = '8080'", "functions.toml:2: listen: "),
        ("[gateway]\nadmin = '0.0.0.0:8080'", "functions.toml:2: admin: is the address"),
        ("[gateways]", "functions.toml:1: "),
        ("[[function]]\nname = 'a'", "functions.toml:2: name: the function has neither"),
        ("[[function]]\nmodule = 'a.wasm'", "functions.toml:1: [[function]]: missing field `name`"),
        ("[[route]]\nfunction = 'b'\npath = '/'", "functions.toml:2: function: there is no"),
        ("[[function]]\nname = '../a'\nmodule = 'a.wasm'", "functions.toml:2: name: \"../a\""),
        ("[[function]]\nname = 'a'\nmodule = 'a.exe'", "functions.toml:3: module: is called"),
    ] {
        let said = problem(text);
        assert!(said.starts_with(message), "{text:?}: {said}");
    }
}

#[test]
fn two_functions_need_two_names() {
    let one = "[[function]]\nname = 'a'\nmodule = 'a.wasm'\n";
    assert_eq!(problem(&one.repeat(2)), "functions.toml:5: name: \"a\" is taken");
}

#[test]
fn any_text_is_refused_without_a_panic() {
    for text in ["\u{0}", "[", "[[function]]\n[[function]]", "a = \"\\u{110000}\"", "[[[[[", "x"] {
        let _ = problem(text);
    }
    let deep = format!("a = {}", "[".repeat(10_000));
    let _ = problem(&deep);
}

/// The first block of docs/gateway.md.
#[test]
fn the_example_of_the_documentation_is_right() {
    let text = include_str!("../../../docs/gateway.md");
    let example = text.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let config = parse(example).unwrap();
    assert_eq!(config.functions.len(), 3);
    assert_eq!(config.routes.len(), 4);
    assert!(config.gateway.watch && config.gateway.access_log.is_some_and(|log| log.json));
    // It names every key that there is.
    let keys = [
        "listen",
        "admin",
        "access_log",
        "access_log_format",
        "watch",
        "grace",
        "name",
        "module",
        "bundle",
        "protocol",
        "args",
        "env",
        "dirs",
        "memory",
        "cpu",
        "pids",
        "warm",
        "max",
        "queue",
        "timeout",
        "reuse",
        "handler",
        "freeze_after",
        "stop_after",
        "keep",
        "user",
        "routes",
        "function",
        "method",
        "path",
    ];
    for key in keys {
        assert!(
            example.lines().any(|line| line.trim_start().starts_with(&format!("{key} ="))),
            "{key}"
        );
    }
}
