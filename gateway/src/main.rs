//! `kiln-gateway`: `kiln serve --config` and `kiln fn`.

use std::process::ExitCode;

fn main() -> ExitCode {
    kiln_gateway::main()
}
