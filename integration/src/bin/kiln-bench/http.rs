//! `--http`: functions over HTTP, with wrk and ab as the load, and this program where each answer
//! is another.
//!
//! What it is compared with is measured in the same run: the same HTTP server with a constant answer,
//! and `kiln run` of the same module. wasmkeeper's figures are its own, from such a machine.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kiln_integration::gateway::Gateway;
use kiln_integration::http::{Address, Request};
use kiln_integration::serve::{Server, Serving};
use kiln_integration::{Cli, eventually, fresh_id, reaper};

use crate::Setup;
use crate::bundles::Bundles;
use crate::measure::time_ms;

/// Clients with a connection each that is kept, as in the issue of wasmkeeper's successor.
const CLIENTS: usize = 32;
/// How long wrk runs each time, in seconds.
const SECONDS: u32 = 4;
/// Requests whose every answer is another.
const CHECKED: u64 = 100_000;
/// What hello says, and so what every answer of it is.
const HELLO: &str = r#"{"status":0,"output":["hello from wasm"]}"#;
const KEEPER_ONE: f64 = 1030.0;
const KEEPER_TEN: f64 = 125.0;
const KEEPER_MB: f64 = 66.0;

/// A line of the table.
struct Row {
    what: &'static str,
    figure: String,
    reference: String,
    ratio: Option<f64>,
    must: &'static str,
}

/// The whole benchmark: prints its table.
pub fn run(setup: &Setup) {
    let mut rows = Vec::new();
    eprintln!("wrong answers");
    rows.push(wrong_answers());
    eprintln!("new connections");
    rows.extend(new_connections(setup.rounds));
    eprintln!("kept connections");
    rows.extend(kept_connections(setup.rounds));
    eprintln!("cold and frozen");
    rows.extend(gateway(setup));
    eprintln!("memory");
    rows.push(memory());
    println!("| what | kiln | reference | ratio | must |");
    println!("|---|---|---|---|---|");
    for Row { what, figure, reference, ratio, must } in rows {
        let ratio = ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
        println!("| {what} | {figure} | {reference} | {ratio} | {must} |");
    }
}

fn hello(flags: &str) -> Server {
    Serving::example("hello").flags(flags).compiled().start()
}

/// Ten clients, each request with arguments of its own, each answer looked at.
fn wrong_answers() -> Row {
    let server = Serving::example("show").compiled().start();
    let wrong = AtomicU64::new(0);
    thread::scope(|scope| {
        for client in 0..10_u64 {
            let (address, wrong) = (&server.address, &wrong);
            scope.spawn(move || {
                let mut connection = address.connect().unwrap();
                for round in 0..CHECKED / 10 {
                    let word = format!("{client}-{round}-{}", round * 7919 % 1013);
                    let body = format!(r#"{{"args":["{word}"]}}"#);
                    let answer = connection.ask(&Request::new("POST", "/").body(body));
                    if answer.text() != format!(r#"{{"status":0,"output":["{word}"]}}"#) {
                        wrong.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    Row {
        what: "wrong answers of 100,000, 10 clients",
        figure: wrong.into_inner().to_string(),
        reference: "wasmkeeper: 51 of 750".to_owned(),
        ratio: None,
        must: "0",
    }
}

/// ab: a connection for each request.
fn new_connections(rounds: usize) -> [Row; 2] {
    let server = hello("");
    let rate = |clients: usize| {
        let (requests, clients) = ((clients * 4000).min(20_000).to_string(), clients.to_string());
        let rates = (0..rounds.min(5)).map(|_| {
            let file = server.home().join("body");
            std::fs::write(&file, "{}").unwrap();
            let ab = Cli::new(["-q", "-n", &requests, "-c", &clients, "-p"]).binary("ab");
            let text = output(ab.arg(&file).arg(url(&server.address)));
            assert_eq!(number(&text, "Failed requests:"), 0.0, "{text}");
            assert!(!text.contains("Non-2xx"), "{text}");
            number(&text, "Requests per second:")
        });
        median(rates.collect())
    };
    let row = |what, rate: f64, keeper: f64, must| Row {
        what,
        figure: format!("{rate:.0}/s"),
        reference: format!("wasmkeeper: {keeper}/s"),
        ratio: Some(rate / keeper),
        must,
    };
    [
        row("1 client, a connection each (ab)", rate(1), KEEPER_ONE, "3"),
        row("10 clients, a connection each (ab)", rate(10), KEEPER_TEN, "30"),
    ]
}

/// wrk, in turns with the constant answer.
fn kept_connections(rounds: usize) -> Vec<Row> {
    let constant = Constant::start();
    let (fresh, reused) =
        (hello(""), Serving::example("answer").flags("--reuse").compiled().start());
    let (mut own, mut again, mut base) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds.clamp(1, 8) {
        let rate =
            |address, expected| number(&wrk(address, expected, CLIENTS, SECONDS), "Requests/sec:");
        base.push(rate(&constant.address, "constant\n"));
        own.push(rate(&fresh.address, HELLO));
        again.push(rate(&reused.address, HELLO));
    }
    let [base, own, again] = [base, own, again].map(median);
    drop((constant, reused));
    let row = |what, rate: f64, must| Row {
        what,
        figure: format!("{rate:.0}/s"),
        reference: format!("constant: {base:.0}/s"),
        ratio: Some(rate / base),
        must,
    };
    let (rate, p50, p99) = near_rate(&fresh.address, own / 2.0);
    let steady = Row {
        what: "p99 at about half of that rate, fewer clients (wrk)",
        figure: format!("{p99:.2} ms"),
        reference: format!("p50 {p50:.2} ms, at {rate:.0}/s"),
        ratio: Some(p99 / p50),
        must: "5",
    };
    vec![
        row("32 clients, kept connections, fresh instances (wrk)", own, "0.12"),
        row("the same with `--reuse`", again, "0.4"),
        steady,
    ]
}

/// With as many clients as come nearest to this rate a second: the rate, and the median and the 99th
/// percentile of the latency in milliseconds.
fn near_rate(address: &Address, rate: f64) -> (f64, f64, f64) {
    let loads = (1..=6).map(|clients| {
        let text = wrk(address, HELLO, clients, 2);
        let latency = |part: &str| {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(part));
            milliseconds(line.unwrap_or_default().trim())
        };
        (number(&text, "Requests/sec:"), latency("50%"), latency("99%"))
    });
    loads.min_by(|a, b| (a.0 - rate).abs().total_cmp(&(b.0 - rate).abs())).unwrap()
}

/// A time as wrk writes it.
fn milliseconds(text: &str) -> f64 {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor = match unit {
        "us" => 1e-3,
        "ms" => 1.0,
        "s" => 1e3,
        _ => panic!("{text:?} is no time"),
    };
    number.parse::<f64>().unwrap() * factor
}

/// The first answer of a function that is not there, or frozen.
fn gateway(setup: &Setup) -> Vec<Row> {
    let kiln = &setup.runtimes[0];
    let bundles = Bundles::new(kiln, &setup.examples);
    let (bundle, root) = (bundles.example("hello.wasm", &[]), bundles.root(kiln));
    let module = setup.examples.join("hello.wasm");
    let function = format!(
        "[[function]]\nname = 'hello'\nmodule = '{}'\nroutes = ['POST /hello']\n",
        module.display()
    );
    let timed = |gateway: &Gateway| {
        let begun = Instant::now();
        assert_eq!(gateway.post("/hello", b"{}").is(200).text(), HELLO);
        begun.elapsed().as_secs_f64() * 1e3
    };
    let (mut cold, mut run) = (Vec::new(), Vec::new());
    let gateway = Gateway::start(&format!("{function}stop_after = '50ms'\n"));
    for round in 0..=setup.rounds.min(20) {
        gateway.await_state("hello", "absent");
        let first = timed(&gateway);
        let own = time_ms(
            kiln.command(&root, &["run", "--bundle", bundle.to_str().unwrap(), &fresh_id()]),
        );
        // The first compiles.
        if round > 0 {
            cold.push(first);
            run.push(own);
        } else {
            thread::sleep(Duration::from_secs(2));
        }
    }
    drop(gateway);
    let (mut frozen, mut warm) = (Vec::new(), Vec::new());
    let gateway = Gateway::start(&format!("{function}freeze_after = '50ms'\n"));
    timed(&gateway);
    for _ in 0..setup.rounds.min(20) {
        gateway.await_state("hello", "frozen");
        frozen.push(timed(&gateway));
        warm.push(timed(&gateway));
    }
    let [cold, run, frozen, warm] = [cold, run, frozen, warm].map(median);
    vec![
        Row {
            what: "first answer of a function scaled to zero",
            figure: format!("{cold:.2} ms"),
            reference: format!("`kiln run`: {run:.2} ms"),
            ratio: Some(cold / run),
            must: "1.5",
        },
        Row {
            what: "first answer of a frozen one",
            figure: format!("{frozen:.2} ms"),
            reference: format!("warm: {warm:.2} ms, so {:+.2} ms", frozen - warm),
            ratio: None,
            must: "+2 ms",
        },
    ]
}

/// Of all processes of an idle function, each page counted once.
fn memory() -> Row {
    let server = hello("");
    server.address.post("{}").is(200);
    thread::sleep(Duration::from_secs(3));
    let mb: f64 = server.processes().into_iter().map(|pid| pss_kib(pid) / 1024.0).sum();
    Row {
        what: "idle memory of a warm function (PSS)",
        figure: format!("{mb:.1} MiB"),
        reference: format!("wasmkeeper: {KEEPER_MB} MB resident"),
        ratio: None,
        must: "12 MB",
    }
}

fn pss_kib(pid: i32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// `keeper/examples/constant.rs`.
struct Constant {
    child: Child,
    address: Address,
}

impl Constant {
    fn start() -> Self {
        let path = PathBuf::from(std::env::var_os("CONSTANT").expect("CONSTANT"));
        let port = 18_980;
        let mut command = Command::new(path);
        command.arg(port.to_string()).stdin(Stdio::null()).stdout(Stdio::null());
        let child = reaper::spawn(&mut command);
        let address = Address::port(port);
        eventually("the constant server", || address.connect().is_ok());
        Constant { child, address }
    }
}

impl Drop for Constant {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What wrk prints, every answer compared.
fn wrk(address: &Address, expected: &str, clients: usize, seconds: u32) -> String {
    let script = tempfile::NamedTempFile::new().unwrap();
    let text = format!(
        "wrk.method = 'POST'\nwrk.body = '{{}}'\nlocal expected = {expected:?}\nwrong = 0\n\
         local threads = {{}}\n\
         function setup(thread) table.insert(threads, thread) end\n\
         function response(status, headers, body)\n\
           if status ~= 200 or body ~= expected then wrong = wrong + 1 end\n\
         end\n\
         function done()\n\
           for _, thread in ipairs(threads) do print('wrong: ' .. thread:get('wrong')) end\n\
         end\n"
    );
    std::fs::write(script.path(), text).unwrap();
    let (clients, seconds) = (format!("-c{clients}"), format!("-d{seconds}"));
    let wrk = Cli::new(["--latency", "-t1", &clients, &seconds, "-s"]).binary("wrk");
    let text = output(wrk.arg(script.path()).arg(url(address)));
    assert_eq!(number(&text, "wrong:"), 0.0, "{text}");
    text
}

fn url(address: &Address) -> String {
    match address {
        Address::Tcp(address) => format!("http://{address}/"),
        Address::Unix(path) => panic!("{} is no port", path.display()),
    }
}

fn output(command: Cli) -> String {
    command.output().ok().stdout
}

/// The number behind a label.
fn number(text: &str, label: &str) -> f64 {
    let rest = text.lines().find_map(|line| line.trim().strip_prefix(label));
    let word = rest.and_then(|rest| rest.split_whitespace().next());
    word.and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("no {label} in {text}"))
}

fn median(samples: Vec<f64>) -> f64 {
    percentile(samples, 0.5)
}

fn percentile(mut samples: Vec<f64>, part: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[((samples.len() - 1) as f64 * part).round() as usize]
}
