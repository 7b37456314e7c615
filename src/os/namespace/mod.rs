//! A program in user, network and mount namespaces of its own, without root.
//!
//! Three processes: the *outside* one is the caller's child and stays where it was; it starts the
//! *inside* one, which makes the namespaces and what is in them, starts the *program*, and ends
//! whatever the program leaves behind. The two speak over a socket, and each ends when the other
//! does. All three are in one process group, so that the terminal treats them as one job.

mod causes;
mod identity;
mod init;
mod inside;
mod mounts;
mod outside;
mod processes;
mod signals;
mod talk;

pub use causes::{Cause, Obstacle, forbidden};
pub use init::Ending;
pub use inside::run as run_inside;
pub use mounts::DEVICE_DIR;
pub use outside::{Furnished, Namespace, Running, Told, check_threads};
pub use signals::{Blocked, Signals, end_by};
pub use talk::{Furnishing, HostRoutes, Wanted};
