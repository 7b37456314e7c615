use std::process::ExitCode;

fn main() -> ExitCode {
    agentnet::cli::main()
}
