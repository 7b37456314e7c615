use std::ffi::OsString;

use clap::Args;

use crate::cli::failure::Failure;
use crate::os::namespace;

/// Make the namespaces of `agentnet run` and start the program in them; not for people
#[derive(Args, Debug)]
pub(super) struct InsideArgs {
    /// Program to run, with its arguments
    #[arg(trailing_var_arg = true, required = true, value_name = "PROGRAM")]
    program: Vec<OsString>,
}

impl InsideArgs {
    pub(super) fn execute(self) -> Result<(), Failure> {
        Ok(namespace::run_inside(&self.program)?)
    }
}
