//! Why a program gets no namespace of its own, and the cure.

use std::{fs, io, path::Path};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::os::route::RouteError;
use crate::os::tun::TunError;

/// What is in the way, as programs tell it; never renamed.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// AppArmor gives user namespaces no rights (kernel.apparmor_restrict_unprivileged_userns).
    AppArmor,
    /// The process inside ended, and nobody knows why.
    EndedInside,
    /// The kernel has no namespaces of some kind.
    KernelLacks,
    /// A limit of memory or open files.
    NoMemory,
    /// Whatever the system calls say.
    Os,
    /// /proc is not mounted, or not of this process.
    Proc,
    /// No more processes (ulimit -u, pids.max).
    TooManyProcesses,
    /// No more namespaces (user.max_*_namespaces).
    TooManyNamespaces,
    /// /dev/net/tun may not be opened.
    TunDenied,
    /// There is no /dev/net/tun, or its module is not loaded.
    TunMissing,
    /// A seccomp filter, a chroot or another security module says no.
    UserNamespacesDenied,
    /// user.max_user_namespaces is 0, or kernel.unprivileged_userns_clone is.
    UserNamespacesOff,
}

impl Cause {
    /// Returns its stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AppArmor => "apparmor",
            Self::EndedInside => "ended_inside",
            Self::KernelLacks => "kernel_lacks",
            Self::NoMemory => "no_memory",
            Self::Os => "os",
            Self::Proc => "proc",
            Self::TooManyProcesses => "too_many_processes",
            Self::TooManyNamespaces => "too_many_namespaces",
            Self::TunDenied => "tun_denied",
            Self::TunMissing => "tun_missing",
            Self::UserNamespacesDenied => "user_namespaces_denied",
            Self::UserNamespacesOff => "user_namespaces_off",
        }
    }

    /// Returns the limit that a system call ran into; None when it was something else.
    pub fn of_limits(error: &io::Error) -> Option<Self> {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EAGAIN) => Some(Self::TooManyProcesses),
            Some(Errno::ENOMEM | Errno::EMFILE | Errno::ENFILE) => Some(Self::NoMemory),
            _ => None,
        }
    }

    /// Says what a person can do about it; None where only the system's word helps.
    pub const fn hint(self) -> Option<&'static str> {
        match self {
            Self::AppArmor => Some(
                "allow it to agentnet by an AppArmor profile with `userns,` (the package brings one), or to all by sysctl kernel.apparmor_restrict_unprivileged_userns=0",
            ),
            Self::EndedInside => {
                Some("somebody killed it, or memory ran out: see dmesg, and try again")
            }
            Self::KernelLacks => Some(
                "it takes Linux 4.9 or newer with CONFIG_USER_NS and CONFIG_NET_NS; `agentnet up` as root works without",
            ),
            Self::NoMemory => Some("free memory, or raise ulimit -n"),
            Self::Os => None,
            Self::Proc => Some("mount -t proc proc /proc"),
            Self::TooManyProcesses => Some(
                "end other processes of this user, or raise ulimit -u or the container's pids.max",
            ),
            Self::TooManyNamespaces => Some(
                "end other programs that have some, or raise user.max_user_namespaces, user.max_net_namespaces or user.max_mnt_namespaces by sysctl",
            ),
            Self::TunDenied => Some(
                "as root: chmod 0666 /dev/net/tun, as udev does; a container is given it by --device /dev/net/tun",
            ),
            Self::TunMissing => {
                Some("as root: modprobe tun; a container is given it by --device /dev/net/tun")
            }
            Self::UserNamespacesDenied => Some(
                "in a container, allow unshare and mount by its seccomp profile (docker: --security-opt seccomp=unconfined), or start it by podman",
            ),
            Self::UserNamespacesOff => Some(
                "as root: sysctl -e -w user.max_user_namespaces=10000 kernel.unprivileged_userns_clone=1",
            ),
        }
    }
}

/// Why a program gets no namespace of its own; nothing of it is left.
#[derive(Clone, Debug, Deserialize, Error, Serialize)]
#[error("{what}")]
pub struct Obstacle {
    pub cause: Cause,
    /// What failed and how.
    pub what: String,
}

impl Obstacle {
    pub(super) fn new(cause: Cause, what: impl Into<String>) -> Self {
        let what = what.into();
        Self { cause, what }
    }

    /// A system call that failed for reasons common to all.
    pub(super) fn os(what: &str, error: &io::Error) -> Self {
        let cause = Cause::of_limits(error).unwrap_or(Cause::Os);
        Self::new(cause, format!("cannot {what}: {error}"))
    }

    /// The namespaces cannot be made; `root` is where the host's files are.
    pub(super) fn unshare(what: &str, error: &io::Error, root: &Path) -> Self {
        let cause = Cause::of_limits(error).unwrap_or_else(|| refused(error, root));
        Self::new(cause, format!("cannot {what}: {error}"))
    }
}

impl From<TunError> for Obstacle {
    fn from(error: TunError) -> Self {
        let what = error.to_string();
        match error {
            TunError::Denied | TunError::Unopened => Self::new(Cause::TunDenied, what),
            TunError::NoDevice => Self::new(Cause::TunMissing, what),
            TunError::NameTaken(_) => Self::new(Cause::Os, what),
            TunError::Os(source) => Self::os("create a TUN device", &source),
        }
    }
}

impl From<RouteError> for Obstacle {
    fn from(error: RouteError) -> Self {
        Self::new(Cause::Os, error.to_string())
    }
}

/// Tells which of the kernel's settings keeps ordinary users from namespaces, if one does; `root` is where the
/// host's files are.
pub fn forbidden(root: &Path) -> Option<Cause> {
    let set = |name: &str| fs::read_to_string(root.join("proc/sys").join(name)).ok();
    let is = |name: &str, value: &str| set(name).is_some_and(|found| found.trim() == value);
    if is("user/max_user_namespaces", "0") || is("kernel/unprivileged_userns_clone", "0") {
        return Some(Cause::UserNamespacesOff);
    }
    is("kernel/apparmor_restrict_unprivileged_userns", "1").then_some(Cause::AppArmor)
}

/// Finds out who refused, by what the kernel tells of its settings.
fn refused(error: &io::Error, root: &Path) -> Cause {
    let errno = error.raw_os_error().map(Errno::from_raw);
    if matches!(errno, Some(Errno::ENOSYS | Errno::EINVAL)) {
        return Cause::KernelLacks;
    }
    let by_setting = forbidden(root);
    if by_setting != Some(Cause::UserNamespacesOff)
        && matches!(errno, Some(Errno::ENOSPC | Errno::EUSERS))
    {
        return Cause::TooManyNamespaces;
    }
    by_setting.unwrap_or(Cause::UserNamespacesDenied)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::files::tests::Scratch;

    fn host(settings: &[(&str, &str)]) -> Scratch {
        let root = Scratch::new("causes");
        for (name, value) in settings {
            let path = root.join("proc/sys").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{value}\n")).unwrap();
        }
        root
    }

    #[test]
    fn who_refused_is_told_by_the_kernels_settings() {
        let off = [("user/max_user_namespaces", "0")];
        let debian = [("kernel/unprivileged_userns_clone", "0")];
        let ubuntu = [
            ("user/max_user_namespaces", "9000"),
            ("kernel/apparmor_restrict_unprivileged_userns", "1"),
        ];
        for (settings, errno, cause) in [
            (off.as_slice(), Errno::ENOSPC, Cause::UserNamespacesOff),
            (&debian, Errno::EPERM, Cause::UserNamespacesOff),
            (&ubuntu, Errno::EPERM, Cause::AppArmor),
            (&ubuntu, Errno::EACCES, Cause::AppArmor),
            (&ubuntu, Errno::ENOSPC, Cause::TooManyNamespaces),
            (&[], Errno::EPERM, Cause::UserNamespacesDenied),
            (&[], Errno::EINVAL, Cause::KernelLacks),
            (&[], Errno::EAGAIN, Cause::TooManyProcesses),
        ] {
            let error = io::Error::from(errno);

            let found = Obstacle::unshare("make namespaces", &error, &host(settings));

            assert_eq!(found.cause, cause, "{settings:?} {errno}");
            assert!(found.cause.hint().is_some());
        }
    }

    #[test]
    fn a_cause_is_written_as_it_is_named() {
        let written = serde_json::to_string(&Cause::UserNamespacesOff).unwrap();

        assert_eq!(written, format!("{:?}", Cause::UserNamespacesOff.as_str()));
    }
}
