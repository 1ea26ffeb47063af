//! The network of a containerd's pods.

use std::fs;
use std::path::Path;

use crate::image::sha256;
use crate::{Cli, fresh_id};

/// The pods' network: a name and addresses that no other has.
#[derive(Debug)]
pub struct Network {
    name: String,
    subnet: String,
}

impl Network {
    pub fn new() -> Self {
        let id = fresh_id();
        // Whatever else runs on the machine is unlikely to have the same.
        let hash = sha256(id.as_bytes());
        let byte = |at: usize| u8::from_str_radix(&hash[at..at + 2], 16).unwrap_or_default();
        Network { name: id, subnet: format!("10.{}.{}.0/24", 128 + byte(0) / 2, byte(2)) }
    }

    /// Writes the configuration into `folder`: a pair of interfaces per pod, no bridge.
    pub fn configure(&self, folder: &Path) {
        let ipam = serde_json::json!({
            "type": "host-local",
            "dataDir": folder.join("data"),
            "ranges": [[{ "subnet": self.subnet }]],
        });
        let list = serde_json::json!({
            "cniVersion": "0.4.0",
            "name": self.name,
            "plugins": [{ "type": "ptp", "ipMasq": false, "ipam": ipam }],
        });
        fs::create_dir_all(folder.join("net.d")).unwrap();
        fs::write(folder.join("net.d/10-kiln.conflist"), list.to_string()).unwrap();
    }

    /// Interfaces that have the network's addresses, and what CNI remembers of it.
    pub fn left(&self) -> Vec<String> {
        let cli = Cli::new(["-oneline", "address", "show", "to", &self.subnet]).binary("ip");
        let interfaces = cli.spawn().try_wait().map(|outcome| outcome.stdout).unwrap_or_default();
        let mut left: Vec<String> =
            interfaces.lines().map(|line| format!("interface {line}")).collect();
        let results = fs::read_dir("/var/lib/cni/results").into_iter().flatten().flatten();
        let own = results.filter(|entry| entry.file_name().to_string_lossy().contains(&self.name));
        left.extend(own.map(|entry| format!("result of CNI {}", entry.path().display())));
        left
    }
}
