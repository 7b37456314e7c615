//! Where state and socket are when nobody says.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    unistd::{AccessFlags, access, geteuid},
};
use thiserror::Error;

/// The state directory of a node that serves the whole host.
const SYSTEM_STATE: &str = "/var/lib/agentnet";

/// The socket that belongs to [`SYSTEM_STATE`].
const SYSTEM_SOCKET: &str = "/run/agentnet/agentnet.sock";

/// Where packages put settings.
const SYSTEM_CONFIG: &str = "/etc/agentnet";

/// The socket's name inside a folder that is not ours alone.
const SOCKET_NAME: &str = "agentnet.sock";

/// Bytes of a socket's path, the final zero not counted (unix(7): `sun_path` has 108).
const MAX_SOCKET_PATH: usize = 107;

/// Why no place can be named.
#[derive(Debug, Error)]
pub enum PathError {
    #[error("no state directory: {SYSTEM_STATE} cannot be written and HOME is not set")]
    NoState,
    #[error("the socket's path {} is longer than {MAX_SOCKET_PATH} bytes", .0.display())]
    SocketTooLong(PathBuf),
}

/// Reads one environment variable; a parameter, so that tests can say what is set.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Returns the state directory of a host where none was named.
pub fn default_state(env: Env<'_>) -> Result<PathBuf, PathError> {
    let system = Path::new(SYSTEM_STATE);
    let usable = if system.exists() {
        // On a disk that is read-only now it is ours all the same, and its agents not to be passed over.
        writable(system) || (is_read_only(system) && is_ours(system))
    } else {
        system.parent().is_some_and(writable)
    };
    if usable {
        return Ok(system.to_owned());
    }
    user_state(env).ok_or(PathError::NoState)
}

/// Returns the socket of the node whose state is in `state`.
pub fn socket_of(state: &Path, env: Env<'_>) -> Result<PathBuf, PathError> {
    let socket = if state == Path::new(SYSTEM_STATE) {
        PathBuf::from(SYSTEM_SOCKET)
    } else if let Some(run) = absolute(env, "XDG_RUNTIME_DIR")
        && user_state(env).as_deref() == Some(state)
    {
        run.join(SOCKET_NAME)
    } else {
        state.join(SOCKET_NAME)
    };
    checked_socket(socket)
}

/// Returns `socket` when the kernel can bind it.
pub fn checked_socket(socket: PathBuf) -> Result<PathBuf, PathError> {
    if socket.as_os_str().len() > MAX_SOCKET_PATH {
        return Err(PathError::SocketTooLong(socket));
    }
    Ok(socket)
}

/// Returns the socket a command talks to where none was named: the user's own node if it has one,
/// else the host's.
pub fn find_socket(env: Env<'_>) -> Result<PathBuf, PathError> {
    let own = socket_of(&default_state(env)?, env)?;
    let system = PathBuf::from(SYSTEM_SOCKET);
    if !own.exists() && system.exists() {
        return Ok(system);
    }
    Ok(own)
}

/// Returns the settings file of this name, where a package put it; None when there is none.
pub fn default_config(name: &str) -> Option<PathBuf> {
    Some(Path::new(SYSTEM_CONFIG).join(name)).filter(|path| path.exists())
}

/// Returns the file of a secret that the service manager hands over under this name (systemd.exec(5),
/// Credentials); None when it hands over none.
pub fn credential(name: &str, env: Env<'_>) -> Option<PathBuf> {
    let folder = absolute(env, "CREDENTIALS_DIRECTORY")?;
    Some(folder.join(name)).filter(|path| path.exists())
}

/// Reads an environment variable; an empty one counts as not set.
pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// XDG base directory specification: relative values are ignored.
fn user_state(env: Env<'_>) -> Option<PathBuf> {
    let base = absolute(env, "XDG_STATE_HOME")
        .or_else(|| absolute(env, "HOME").map(|home| home.join(".local/state")))?;
    Some(base.join("agentnet"))
}

fn absolute(env: Env<'_>, name: &str) -> Option<PathBuf> {
    env(name)
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
}

fn is_read_only(path: &Path) -> bool {
    access(path, AccessFlags::W_OK) == Err(Errno::EROFS)
}

fn is_ours(path: &Path) -> bool {
    let user = geteuid();
    user.is_root() || fs::metadata(path).is_ok_and(|found| found.uid() == user.as_raw())
}

fn writable(path: &Path) -> bool {
    access(path, AccessFlags::W_OK | AccessFlags::X_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(name: &str) -> Option<String> {
        match name {
            "HOME" => Some("/home/u".to_owned()),
            "XDG_STATE_HOME" => Some("relative".to_owned()),
            "XDG_RUNTIME_DIR" => Some("/run/user/7".to_owned()),
            _ => None,
        }
    }

    #[test]
    fn a_socket_belongs_to_its_state_directory() {
        for (state, socket) in [
            ("/var/lib/agentnet", "/run/agentnet/agentnet.sock"),
            ("/home/u/.local/state/agentnet", "/run/user/7/agentnet.sock"),
            ("/tmp/a", "/tmp/a/agentnet.sock"),
        ] {
            assert_eq!(
                socket_of(Path::new(state), &env).unwrap(),
                Path::new(socket)
            );
        }
    }

    #[test]
    fn a_socket_path_the_kernel_cannot_bind_is_refused() {
        let state = PathBuf::from(format!("/{}", "a".repeat(MAX_SOCKET_PATH)));

        assert!(matches!(
            socket_of(&state, &env),
            Err(PathError::SocketTooLong(_))
        ));
    }

    #[test]
    fn a_user_without_home_has_no_state() {
        assert!(user_state(&|_| None).is_none());
        assert_eq!(
            user_state(&|n| (n == "XDG_STATE_HOME").then(|| "/s".to_owned())),
            Some(PathBuf::from("/s/agentnet"))
        );
    }
}
