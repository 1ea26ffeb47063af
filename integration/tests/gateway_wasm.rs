//! `kiln-gateway` with functions that are wasm modules.

#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::HashSet;
use std::fs;
use std::thread;

use kiln_integration::gateway::Gateway;
use kiln_integration::{eventually, examples, json, needs_gateway, needs_wasm, proc};

const NUMBERS: &[u8] = br#"{"args":["1111","2345","8","99","11234","12312","1231231","-10000"]}"#;

/// A gateway with these examples beside its configuration.
fn with(modules: &[&str], functions: &str) -> Gateway {
    let mut gateway = Gateway::new(functions);
    for module in modules {
        let from = examples::find(module).unwrap_or_else(|| panic!("{module} is not built"));
        fs::copy(from, gateway.home().join(module)).unwrap();
    }
    gateway.spawn();
    gateway
}

#[test]
fn a_module_answers() {
    needs_gateway!();
    needs_wasm!();
    let gateway = with(
        &["sort.wasm", "hello.wasm"],
        "[[function]]\nname = 'sort'\nmodule = 'sort.wasm'\nroutes = ['POST /sort']\n\
         [[function]]\nname = 'hello'\nmodule = 'hello.wasm'\nroutes = ['/hello']\n",
    );
    let answers: HashSet<String> = thread::scope(|scope| {
        let asking: Vec<_> =
            (0..8).map(|_| scope.spawn(|| gateway.post("/sort", NUMBERS).is(200).text())).collect();
        asking.into_iter().map(|asking| asking.join().unwrap()).collect()
    });
    assert_eq!(answers.len(), 1, "{answers:?}");
    let answer = gateway.post("/sort", NUMBERS).is(200).json();
    assert_eq!(answer["status"], 0);
    let line = answer["output"].to_string();
    assert!(line.contains("-10000") && line.find("-10000") < line.find("1231231"), "{line}");
    assert_eq!(gateway.function("sort")["cold_starts"], 1);
    gateway.post("/hello", b"").is(200).shows("hello from wasm");
    assert_eq!(gateway.function("hello")["server"]["requests"], 1);
}

#[test]
fn it_is_frozen_removed_and_there_again() {
    needs_gateway!();
    needs_wasm!();
    let gateway = with(
        &["sort.wasm"],
        "[[function]]\nname = 'sort'\nmodule = 'sort.wasm'\nroutes = ['/sort']\n\
         freeze_after = '200ms'\nstop_after = '1s'\n",
    );
    for round in 1..=2 {
        gateway.post("/sort", NUMBERS).is(200);
        gateway.await_state("sort", "frozen");
        gateway.post("/sort", NUMBERS).is(200);
        gateway.await_state("sort", "absent");
        eventually("the container to go", || gateway.containers().is_empty());
        assert_eq!(gateway.function("sort")["cold_starts"], round);
    }
}

#[test]
fn what_is_no_module_is_said() {
    needs_gateway!();
    needs_wasm!();
    let gateway = Gateway::new(
        "[[function]]\nname = 'bad'\nmodule = 'bad.wasm'\nroutes = ['/bad']\n\
         [[function]]\nname = 'trap'\nmodule = 'trap.wasm'\nroutes = ['/trap']\n",
    );
    let mut gateway = gateway;
    fs::write(gateway.home().join("bad.wasm"), "no module").unwrap();
    fs::copy(examples::find("trap.wasm").unwrap(), gateway.home().join("trap.wasm")).unwrap();
    gateway.spawn();
    let answer = gateway.get("/bad").is(502);
    assert!(answer.text().contains("/module.wasm"), "{}", answer.text());
    gateway.get("/bad").is(503);
    // A request that fails is the request's failure, and its function stays.
    for _ in 0..3 {
        gateway.post("/trap", b"").is(500);
    }
    eventually("why", || {
        let logs = gateway.manage(&["logs", "trap"]).ok().stdout;
        logs.contains("kiln: wasm trap: unreachable\n")
    });
    assert_eq!(gateway.function("trap")["cold_starts"], 1);
    assert_eq!(gateway.state_of("trap"), "warm");
}

#[test]
fn a_module_that_is_replaced_is_another_function() {
    needs_gateway!();
    needs_wasm!();
    let gateway = with(
        &["hello.wasm"],
        "[[function]]\nname = 'f'\nmodule = 'hello.wasm'\nroutes = ['/f']\nargs = ['4', '3']\n",
    );
    gateway.post("/f", b"").is(200).shows("hello from wasm");
    let new = gateway.home().join("new");
    fs::copy(examples::find("sort.wasm").unwrap(), &new).unwrap();
    fs::rename(&new, gateway.home().join("hello.wasm")).unwrap();
    gateway.post("/f", b"").is(200).shows("hello from wasm");
    gateway.reload();
    let answer = gateway.post("/f", b"").is(200);
    assert!(!answer.text().contains("hello"), "{}", answer.text());
    eventually("the old container to go", || gateway.containers().len() == 1);
}

#[test]
fn it_has_nothing_of_the_hosts() {
    needs_gateway!();
    needs_wasm!();
    let gateway = with(
        &["hello.wasm"],
        "[[function]]\nname = 'f'\nmodule = 'hello.wasm'\nroutes = ['/f']\nuser = '4711:4712'\n",
    );
    gateway.post("/f", b"").is(200);
    let pid = gateway.function("f")["pid"].as_i64().unwrap() as i32;
    let field = |name: &str| proc::status_field(pid, name).unwrap();
    for name in ["CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"] {
        assert_eq!(u64::from_str_radix(&field(name), 16), Ok(0), "{name}");
    }
    assert_eq!(field("NoNewPrivs"), "1");
    assert!(field("Uid").starts_with("4711\t4711"), "{}", field("Uid"));
    for kind in ["net", "pid", "mnt", "ipc", "uts"] {
        assert_ne!(proc::namespace(pid, kind), proc::own_namespace(kind), "{kind}");
    }
    let interfaces = fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap();
    assert_eq!(interfaces.lines().skip(2).count(), 1, "lo alone: {interfaces}");
    assert_eq!(gateway.function("f")["state"], json!("warm"));
}
