//! `--containerd`: kiln's shim beside runc's, in one containerd of the benchmark's own.
//!
//! Times are taken in rounds. Memory does not vary so: it is read once, of one kind of pods at a
//! time, because pods of one shim share its pages.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use containerd_shim_protos::api::CreateTaskRequest;
use kiln_integration::containerd::{self, Containerd, Shim};
use kiln_integration::image::Image;
use kiln_integration::ttrpc::Client;
use kiln_integration::{Cli, examples, fresh_id, json, reaper};

use crate::bundles::Bundles;
use crate::comparison::{Comparison, Series, Target, markdown};
use crate::measure::{Runtime, time_ms};
use crate::memory::{Keepers, Memory, init_of};
use crate::pod::{Idle, Pod};
use crate::rounds::{Timed, split, take};
use crate::{Setup, table};

/// Pods of one kind at a time, and containers in one pod.
const MANY: usize = 20;
/// How many containers are started at once.
const AT_ONCE: usize = 20;
/// Of what takes long there are fewer rounds.
const SLOWER: usize = 5;
/// Until what was started does nothing any more.
const SETTLE: Duration = Duration::from_secs(2);

const IMAGE: &str = "localhost/kiln-bench/all:1";
/// Makes a container a wasm container.
pub const VARIANT: &str = "module.wasm.image/variant=compat";

/// A shim, and for runc's what it executes.
pub struct Subject {
    /// How the table calls it.
    pub name: String,
    shim: Shim,
    binary: Option<PathBuf>,
}

/// A containerd, and everything to run in it.
pub struct Bench {
    containerd: Containerd,
    subjects: Vec<Subject>,
    bundles: Bundles,
    runtimes: Vec<Runtime>,
}

/// The whole benchmark: prints its table.
pub fn run(setup: Setup) {
    let bench = Bench::new(setup.runtimes, &setup.examples);
    let mut comparisons = bench.times(setup.rounds);
    comparisons.extend(bench.memory_of_pods());
    comparisons.extend(bench.memory_of_containers());
    print!("{}\n{}", markdown(&comparisons), bench.legend(setup.rounds));
}

impl Bench {
    fn new(runtimes: Vec<Runtime>, modules: &Path) -> Self {
        if let Some(reason) = Shim::Kiln.missing() {
            panic!("{reason}");
        }
        let containerd = Containerd::start(false);
        // runc, which the issue's ratios are about, first.
        let order = ["runc", "crun", "kiln"].into_iter();
        let others = order.filter_map(|name| runtimes.iter().find(|one| one.name == name));
        let others = others.map(|runtime| Subject {
            name: format!("runc's shim + {}", runtime.name),
            shim: Shim::Runc,
            binary: Some(runtime.binary.clone()),
        });
        let own = Subject { name: "kiln's shim".to_owned(), shim: Shim::Kiln, binary: None };
        let subjects = [own].into_iter().chain(others).collect();
        let bundles = Bundles::new(&runtimes[0], modules);
        let bench = Bench { containerd, subjects, bundles, runtimes };
        bench.containerd.import(&bench.image());
        for module in ["hello.wasm", "sleep.wasm"] {
            let mut warm = Command::new(&bench.kiln().binary);
            warm.args(["aot", "warm"]).arg(modules.join(module)).stdout(Stdio::null());
            warm.env("KILN_CACHE_DIR", bench.cache());
            time_ms(warm);
        }
        bench
    }

    /// One image for everything, so that no subject unpacks another.
    fn image(&self) -> Image {
        let rootfs = tempfile::tempdir_in(self.containerd.home()).unwrap();
        let find = |name| examples::find(name).unwrap_or_else(|| panic!("{name} is not built"));
        for name in ["true", "pause", "hello.wasm", "sleep.wasm"] {
            std::fs::copy(find(name), rootfs.path().join(name)).unwrap();
        }
        std::fs::copy("/bin/busybox", rootfs.path().join("busybox")).expect("busybox-static");
        let config = json!({ "Cmd": ["/true"], "WorkingDir": "/" });
        Image::of_folder(IMAGE, rootfs.path(), &config, self.containerd.home())
    }

    fn kiln(&self) -> &Runtime {
        self.runtime("kiln").expect("KILN")
    }

    fn runtime(&self, name: &str) -> Option<&Runtime> {
        self.runtimes.iter().find(|runtime| runtime.name == name)
    }

    /// Where containerd's environment says that compiled modules are.
    fn cache(&self) -> PathBuf {
        let own = || self.containerd.home().join("cache");
        std::env::var_os("KILN_CACHE_DIR").map_or_else(own, PathBuf::from)
    }

    fn own(&self) -> &Subject {
        &self.subjects[0]
    }

    /// `ctr run` by this subject.
    pub fn run_cli(&self, subject: &Subject, flags: &[&str], id: &str, words: &[&str]) -> Cli {
        let snapshotter = containerd::snapshotter();
        let mut cli = self.containerd.ctr_cli(&["run", "--snapshotter", snapshotter]);
        cli = cli.args(&["--runtime", subject.shim.runtime()]);
        if let Some(binary) = &subject.binary {
            cli = cli.arg("--runc-binary").arg(binary);
            cli = cli.arg("--runc-root").arg(self.containerd.home().join("r"));
        }
        cli.args(flags).args(&[IMAGE, id]).args(words)
    }

    /// A task's bundle.
    pub fn bundle(&self, id: &str) -> PathBuf {
        self.containerd.bundle(&self.containerd.namespace, id)
    }

    /// Ends and removes a container. For guards: what stays is found at the end.
    pub fn delete(&self, id: &str) {
        for kind in ["tasks", "containers"] {
            let force: &[&str] = if kind == "tasks" { &["--force"] } else { &[] };
            let cli = self.containerd.ctr_cli(&[kind, "delete"]).args(force).arg(id);
            let _ = cli.spawn().try_wait();
        }
    }

    // --- times ---

    fn times(&self, rounds: usize) -> Vec<Comparison> {
        let mut rows = self.runs(rounds);
        rows.extend(self.tasks(rounds));
        rows.push(self.execs(rounds));
        rows.push(self.at_once(rounds.div_ceil(SLOWER)));
        rows
    }

    fn runs(&self, rounds: usize) -> Vec<Comparison> {
        let wasm = || self.run_sample(self.own(), &["--annotation", VARIANT], "/hello.wasm");
        let own = Timed::new(&self.own().name, wasm);
        let truths = self.of_all(|subject| self.run_sample(subject, &[], "/true"));
        let mut series = take([own].into_iter().chain(truths).collect(), rounds).into_iter();
        let (wasm, truth) = (series.next().unwrap_or_default(), series.next().unwrap_or_default());
        let others: Vec<Series> = series.collect();
        let truths =
            others.iter().cloned().map(|other| other.named(|name| format!("{name}, true")));
        let target = Some(Target::Ratio(0.6, 0.4));
        vec![
            Comparison::new("`ctr run --rm` of true", "ms", target, truth, others.clone()),
            Comparison::new(
                "`ctr run --rm` of wasm hello, compiled",
                "ms",
                target,
                wasm,
                truths.collect(),
            ),
        ]
    }

    /// The shim's calls, and what runtimes do as commands, on bundles that are ready, in the pod's
    /// namespaces.
    fn tasks(&self, rounds: usize) -> Vec<Comparison> {
        let pod = Pod::start(self, self.own(), true);
        let bundle = |program: &str| {
            let bundle = self.bundles.example(program, &[]);
            Bundles::join(&bundle, pod.init(), &["network", "ipc", "uts"]);
            bundle
        };
        let calls = ["hello.wasm", "true"].map(|program| {
            let (bundle, mut shim) = (bundle(program), pod.client());
            Timed::new(&self.own().name, move || self.calls_sample(&mut shim, &bundle))
        });
        let runtimes = ["crun", "runc", "kiln"].into_iter().filter_map(|name| self.runtime(name));
        let commands = runtimes.map(|runtime| {
            let (name, bundle) = (runtime.name, bundle("true"));
            let what = format!("`{name} create` + `{name} start` of true");
            Timed::new(&what, move || self.commands_sample(runtime, &bundle))
        });
        let mut series = take(calls.into_iter().chain(commands).collect(), rounds).into_iter();
        let (wasm, truth) = (series.next().unwrap_or_default(), series.next().unwrap_or_default());
        let others: Vec<Series> = series.collect();
        let what = |of| {
            format!("`Create` + `Start` of {of} in a running pod, asked of the shim over ttrpc")
        };
        let target = Some(Target::Ratio(0.6, 0.35));
        vec![
            Comparison::new(&what("wasm hello"), "ms", target, wasm, others.clone()),
            Comparison::new(&what("true"), "ms", None, truth, others),
        ]
    }

    fn execs(&self, rounds: usize) -> Comparison {
        let idle: Vec<Idle<'_>> =
            self.subjects.iter().map(|subject| Idle::start(self, subject)).collect();
        let timed =
            idle.iter().map(|idle| Timed::new(&idle.subject.name, || self.exec_sample(&idle.id)));
        let (own, others) = split(take(timed.collect(), rounds));
        Comparison::new("`ctr task exec` of true", "ms", None, own, others)
    }

    fn at_once(&self, rounds: usize) -> Comparison {
        let timed = self.of_all(|subject| self.at_once_sample(subject));
        let (own, others) = split(take(timed.collect(), rounds));
        let what = format!("{AT_ONCE} `ctr run --rm` of true at once ({rounds} rounds)");
        Comparison::new(&what, "ms", None, own, others)
    }

    /// The same of every subject.
    fn of_all<'a>(
        &'a self,
        sample: impl Fn(&Subject) -> f64 + Copy + 'a,
    ) -> impl Iterator<Item = Timed<'a>> {
        let subjects = self.subjects.iter();
        subjects.map(move |subject| Timed::new(&subject.name, move || sample(subject)))
    }

    fn run_sample(&self, subject: &Subject, flags: &[&str], program: &str) -> f64 {
        let flags: Vec<&str> = ["--rm"].into_iter().chain(flags.iter().copied()).collect();
        time_ms(quiet(self.run_cli(subject, &flags, &fresh_id(), &[program])))
    }

    fn exec_sample(&self, id: &str) -> f64 {
        let exec = fresh_id();
        let words = ["tasks", "exec", "--exec-id", &exec, id, "/true"];
        time_ms(quiet(self.containerd.ctr_cli(&words)))
    }

    fn at_once_sample(&self, subject: &Subject) -> f64 {
        let commands: Vec<_> = (0..AT_ONCE)
            .map(|_| quiet(self.run_cli(subject, &["--rm"], &fresh_id(), &["/true"])))
            .collect();
        let start = Instant::now();
        let started: Vec<_> =
            commands.into_iter().map(|mut command| reaper::spawn(&mut command)).collect();
        for mut child in started {
            let status = reaper::wait(&mut child);
            assert!(status.success(), "{status} of one of {AT_ONCE} of {}", subject.name);
        }
        start.elapsed().as_secs_f64() * 1e3
    }

    /// `Create` and `Start` alone are timed.
    fn calls_sample(&self, shim: &mut Client, bundle: &Path) -> f64 {
        let (bundle, id) = (self.bundles.fresh(bundle), fresh_id());
        let mut create = CreateTaskRequest::new();
        id.clone_into(&mut create.id);
        bundle.path().to_str().unwrap().clone_into(&mut create.bundle);
        let start = Instant::now();
        shim.create(&create).unwrap();
        shim.start(&id, "").unwrap();
        let elapsed = start.elapsed();
        assert_eq!(shim.wait(&id, ""), Ok(0));
        shim.delete(&id, "").unwrap();
        elapsed.as_secs_f64() * 1e3
    }

    fn commands_sample(&self, runtime: &Runtime, bundle: &Path) -> f64 {
        let (bundle, id) = (self.bundles.fresh(bundle), fresh_id());
        let root = self.bundles.root(runtime);
        let mut create = runtime.command(&root, &["create", "--bundle"]);
        create.arg(bundle.path()).arg(&id);
        let time = time_ms(create) + time_ms(runtime.command(&root, &["start", &id]));
        time_ms(runtime.command(&root, &["delete", "--force", &id]));
        time
    }

    // --- memory ---

    fn memory_of_pods(&self) -> Vec<Comparison> {
        let runc = self.subjects.iter().find(|subject| subject.name.ends_with("+ runc"));
        let runc = runc.expect("RUNC");
        let (linux, wasm) = (self.pods(self.own(), false), self.pods(self.own(), true));
        let theirs = self.pods(runc, false);
        let series = |of: &Subject, pods: &[Keepers], figure: fn(&Keepers) -> f64| Series {
            name: of.name.clone(),
            samples: pods.iter().map(figure).collect(),
        };
        let shim: fn(&Keepers) -> f64 = |pod| pod.shim.pss;
        let row = |what: &str, target, pods, figure| {
            let others = vec![series(runc, &theirs, shim)];
            Comparison::new(what, "MiB", target, series(self.own(), pods, figure), others)
        };
        let target = Some(Target::Figure(2.5, 1.5));
        vec![
            row(&format!("memory of a shim (PSS), {MANY} Linux pods"), target, &linux, shim),
            row(&format!("memory of a shim (PSS), {MANY} wasm pods"), target, &wasm, shim),
            row("their warm parents", None, &wasm, |pod| pod.warm().pss),
            row("shim and warm parent", None, &wasm, |pod| pod.shim.pss + pod.warm().pss),
        ]
    }

    /// What many pods that are there at one time need.
    fn pods(&self, subject: &Subject, wasm: bool) -> Vec<Keepers> {
        let mut pods: Vec<Pod<'_>> = (0..MANY).map(|_| Pod::start(self, subject, wasm)).collect();
        pods.iter_mut().for_each(Pod::add_idle);
        std::thread::sleep(SETTLE);
        let keepers: Vec<Keepers> = pods.iter().map(Pod::keepers).collect();
        assert!(keepers.iter().all(|pod| pod.warm.is_some() == wasm), "{keepers:?}");
        keepers
    }

    fn memory_of_containers(&self) -> Vec<Comparison> {
        let mut pod = Pod::start(self, self.own(), true);
        pod.add_idle();
        std::thread::sleep(SETTLE);
        let (keepers, all) = (pod.keepers(), pod.whole());
        (0..MANY).for_each(|_| pod.add_idle());
        std::thread::sleep(SETTLE);
        let (grown, all_grown) = (pod.keepers(), pod.whole());
        let inits: Vec<Memory> = pod.ids[2..].iter().map(|id| self.memory_of_init(id)).collect();
        let row = |what: &str, target, samples| {
            let own = Series { name: self.own().name.clone(), samples };
            Comparison::new(what, "MiB", target, own, Vec::new())
        };
        let each = |before: f64, after: f64| vec![(after - before) / MANY as f64];
        vec![
            row(
                "private memory of one more idle wasm container (clean + dirty)",
                Some(Target::Figure(2.0, 1.0)),
                inits.iter().map(Memory::private).collect(),
            ),
            row("dirty alone", None, inits.iter().map(|memory| memory.private_dirty).collect()),
            row(
                "what its shim grows by (anonymous)",
                None,
                each(keepers.shim.anonymous, grown.shim.anonymous),
            ),
            row(
                "what its warm parent grows by (anonymous)",
                None,
                each(keepers.warm().anonymous, grown.warm().anonymous),
            ),
            row(
                "what container, shim and warm parent together grow by (PSS)",
                None,
                each(all.pss, all_grown.pss),
            ),
        ]
    }

    /// What a container's init needs.
    pub fn memory_of_init(&self, id: &str) -> Memory {
        Memory::of(init_of(&self.bundle(id)))
    }

    fn legend(&self, rounds: usize) -> String {
        let containerd = Cli::new(["--version"]).binary("containerd").output().ok().stdout;
        // containerd REPOSITORY VERSION REVISION
        let containerd = containerd.split_whitespace().nth(2).unwrap_or_default().to_owned();
        let versions: Vec<String> = self.runtimes.iter().map(Runtime::version).collect();
        format!(
            "Medians (quartiles) of {rounds} interleaved rounds, of {MANY} pods, of {MANY} \
            containers; containerd {containerd}, {}; {}.\n\
            A pod is a sandbox and a container that sleeps. The calls and commands in a running \
            pod get a bundle that is ready, rootfs included, and joins the pod's network, ipc and \
            uts namespaces.\n",
            versions.join(", "),
            table::machine()
        )
    }
}

/// A command whose output nobody reads.
fn quiet(cli: Cli) -> Command {
    let mut command = cli.command();
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}
