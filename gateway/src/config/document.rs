//! `functions.toml` as it is written: names and types, no more.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    pub gateway: Option<GatewayTable>,
    #[serde(default)]
    pub function: Vec<Spanned<FunctionTable>>,
    #[serde(default)]
    pub route: Vec<Spanned<RouteTable>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayTable {
    pub listen: Option<Spanned<String>>,
    pub admin: Option<Spanned<String>>,
    pub access_log: Option<Spanned<String>>,
    pub access_log_format: Option<Spanned<String>>,
    pub watch: Option<bool>,
    pub grace: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FunctionTable {
    pub name: Spanned<String>,
    pub module: Option<Spanned<String>>,
    pub bundle: Option<Spanned<String>>,
    pub protocol: Option<Spanned<String>>,
    #[serde(default)]
    pub args: Vec<Spanned<String>>,
    #[serde(default)]
    pub env: BTreeMap<String, Spanned<String>>,
    #[serde(default)]
    pub dirs: Vec<Spanned<String>>,
    pub limits: Option<LimitsTable>,
    pub warm: Option<Spanned<i64>>,
    pub max: Option<Spanned<i64>>,
    pub queue: Option<Spanned<i64>>,
    pub timeout: Option<Spanned<String>>,
    pub reuse: Option<Spanned<Reuse>>,
    pub handler: Option<Spanned<String>>,
    pub freeze_after: Option<Spanned<String>>,
    pub stop_after: Option<Spanned<String>>,
    pub keep: Option<Spanned<String>>,
    pub user: Option<Spanned<String>>,
    #[serde(default)]
    pub routes: Vec<Spanned<String>>,
}

/// `true`, `false`, or how often.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged, expecting = "expected true, false or a number")]
pub enum Reuse {
    Whether(bool),
    Times(i64),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitsTable {
    pub memory: Option<Spanned<String>>,
    pub cpu: Option<Spanned<f64>>,
    pub pids: Option<Spanned<i64>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteTable {
    pub function: Spanned<String>,
    pub method: Option<Spanned<String>>,
    pub path: Spanned<String>,
}
