use std::{
    fs,
    io::{self, ErrorKind},
    os::fd::OwnedFd,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    extract::connect_info::Connected,
    serve::{IncomingStream, Listener},
};
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::{UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tracing::debug;

use crate::os::passing;

/// Members of this group may change the node.
const GROUP: &str = "agentnet";

/// Connections of root and of the daemon's own user at once, a person and a few scripts; and of everybody
/// else, apart, so that they cannot keep an operator out.
pub(super) const CONNECTIONS: usize = 64;

/// Why the local API cannot be served.
#[derive(Debug, Error)]
pub enum SocketError {
    #[error("cannot listen at the program's socket: {0}")]
    Given(#[source] io::Error),
    #[error("another agentnet answers at {}", .0.display())]
    InUse(PathBuf),
    #[error("{} exists and is not a socket", .0.display())]
    NotASocket(PathBuf),
    #[error("cannot listen at {}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Who is at the other end of a connection, by the kernel's word.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    uid: Uid,
    gid: Gid,
    /// None where the kernel does not say.
    pid: Option<u32>,
    /// Whether it is root or the user the daemon runs as.
    is_owner: bool,
}

impl Caller {
    /// Returns its user's number.
    pub(in crate::node) const fn user(self) -> Uid {
        self.uid
    }

    /// Returns its process.
    pub(in crate::node) const fn process(self) -> Option<u32> {
        self.pid
    }

    /// Tells whether it may change the node.
    pub async fn may_change(self) -> bool {
        if self.is_owner {
            return true;
        }
        // Group members may come from a slow directory service.
        tokio::task::spawn_blocking(move || self.is_member())
            .await
            .unwrap_or(false)
    }

    fn is_member(self) -> bool {
        let Ok(Some(group)) = Group::from_name(GROUP) else {
            return false;
        };
        if self.gid == group.gid {
            return true;
        }
        let Ok(Some(user)) = User::from_uid(self.uid) else {
            return false;
        };
        std::ffi::CString::new(user.name)
            .ok()
            .and_then(|name| getgrouplist(&name, user.gid).ok())
            .is_some_and(|groups| groups.contains(&group.gid))
    }
}

impl Connected<IncomingStream<'_, LocalListener>> for Caller {
    fn connect_info(stream: IncomingStream<'_, LocalListener>) -> Self {
        *stream.remote_addr()
    }
}

/// The socket's file, removed when dropped unless somebody replaced it.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl SocketFile {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|m| m.ino() == self.inode) {
            drop(fs::remove_file(&self.path));
        }
    }
}

/// The local API's socket with its bound on connections.
#[derive(Debug)]
pub struct LocalListener {
    listener: UnixListener,
    /// None where somebody else made the socket.
    file: Option<Arc<SocketFile>>,
    own: Arc<Semaphore>,
    other: Arc<Semaphore>,
}

impl LocalListener {
    /// Binds `path` for so many connections at once of our own, and as many of everybody else.
    pub(super) fn bind(path: &Path, connections: usize) -> Result<Self, SocketError> {
        let failed = |source| SocketError::Io {
            path: path.to_owned(),
            source,
        };
        make_room(path)?;
        make_folder(path).map_err(failed)?;
        let listener = UnixListener::bind(path).map_err(failed)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o666)).map_err(failed)?;
        let inode = fs::symlink_metadata(path).map_err(failed)?.ino();
        Ok(Self {
            listener,
            file: Some(Arc::new(SocketFile {
                path: path.to_owned(),
                inode,
            })),
            own: Arc::new(Semaphore::new(connections)),
            other: Arc::new(Semaphore::new(connections)),
        })
    }

    /// Takes a socket that listens already, on the current tokio runtime.
    pub fn of(listener: std::os::unix::net::UnixListener) -> Result<Self, SocketError> {
        let taken = listener
            .set_nonblocking(true)
            .and_then(|()| UnixListener::from_std(listener));
        Ok(Self {
            listener: taken.map_err(SocketError::Given)?,
            file: None,
            own: Arc::new(Semaphore::new(CONNECTIONS)),
            other: Arc::new(Semaphore::new(CONNECTIONS)),
        })
    }

    pub(super) fn file(&self) -> Option<Arc<SocketFile>> {
        self.file.clone()
    }

    /// Returns who connected and their place; None when they are gone or there is no place left.
    fn admit(&self, stream: &UnixStream) -> Option<(Caller, OwnedSemaphorePermit)> {
        let peer = stream.peer_cred().ok()?;
        let uid = Uid::from_raw(peer.uid());
        let caller = Caller {
            uid,
            gid: Gid::from_raw(peer.gid()),
            pid: peer.pid().and_then(|pid| pid.try_into().ok()),
            is_owner: uid.is_root() || uid == Uid::effective(),
        };
        let places = if caller.is_owner {
            &self.own
        } else {
            &self.other
        };
        let place = Arc::clone(places).try_acquire_owned().ok()?;
        Some((caller, place))
    }
}

/// Makes the folder of a socket: everybody may read status, so everybody may pass. An existing one stays as
/// it is.
pub(crate) fn make_folder(socket: &Path) -> io::Result<()> {
    let Some(folder) = socket.parent().filter(|folder| !folder.exists()) else {
        return Ok(());
    };
    fs::create_dir_all(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))
}

/// Removes the file of a daemon that is no more.
fn make_room(path: &Path) -> Result<(), SocketError> {
    let failed = |source| SocketError::Io {
        path: path.to_owned(),
        source,
    };
    let Ok(found) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !found.file_type().is_socket() {
        return Err(SocketError::NotASocket(path.to_owned()));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(SocketError::InUse(path.to_owned())),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

impl Listener for LocalListener {
    type Io = Held;
    type Addr = Caller;

    async fn accept(&mut self) -> (Held, Caller) {
        loop {
            // axum's own accept waits out errors such as a lack of descriptors.
            let (stream, _) = Listener::accept(&mut self.listener).await;
            match self.admit(&stream) {
                Some((caller, place)) => {
                    let held = Held {
                        stream,
                        _place: place,
                    };
                    return (held, caller);
                }
                None => debug!("Local API connection refused: too many"),
            }
        }
    }

    fn local_addr(&self) -> io::Result<Caller> {
        Ok(Caller {
            uid: Uid::effective(),
            gid: Gid::effective(),
            pid: None,
            is_owner: true,
        })
    }
}

/// A connection and its place among those allowed at once.
#[derive(Debug)]
pub struct Held {
    stream: UnixStream,
    _place: OwnedSemaphorePermit,
}

impl Held {
    /// Receives into `bytes` and adds the descriptors that came to `fds`; returns how many bytes came.
    ///
    /// # Cancel safety
    ///
    /// Safe: what was not waited for comes the next time.
    pub(in crate::node) async fn receive(
        &self,
        bytes: &mut [u8],
        fds: &mut Vec<OwnedFd>,
    ) -> io::Result<usize> {
        let received = self.stream.async_io(Interest::READABLE, || {
            passing::receive(&self.stream, bytes, fds)
        });
        received.await
    }
}

impl AsyncRead for Held {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Held {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::files::tests::Scratch;

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_live_one_refused() {
        let folder = Scratch::new("local-socket");
        let path = folder.join("agentnet.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());

        let listener = LocalListener::bind(&path, CONNECTIONS).unwrap();
        let error = LocalListener::bind(&path, CONNECTIONS).unwrap_err();
        assert!(matches!(error, SocketError::InUse(_)), "{error}");

        drop(listener);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let folder = Scratch::new("local-file");
        let path = folder.join("agentnet.sock");
        fs::write(&path, "precious").unwrap();

        let error = LocalListener::bind(&path, CONNECTIONS).unwrap_err();

        assert!(matches!(error, SocketError::NotASocket(_)), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
