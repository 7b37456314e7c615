//! Notices that somebody changed the host's DNS settings, or restarted who keeps them.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream::SelectAll};
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::net::unix::pipe::Receiver;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tracing::debug;
use zbus::{MatchRule, MessageStream};

use crate::os::dns::bus::{Bus, DAEMON};
use crate::os::dns::detect::Flavour;
use crate::os::dns::resolv_conf::ResolvConf;
use crate::os::dns::{RESOLV_CONF, network_manager, resolved};

/// Writers truncate, write and rename: what they mean is known a moment later.
const SETTLE: Duration = Duration::from_millis(200);

/// Where the system bus listens (D-Bus specification, "Well-known Message Bus Instances").
const BUS: &str = "/run/dbus/system_bus_socket";

/// Signals that may wait; more of them say the same.
const SIGNALS: usize = 16;

/// Notices changes until it is dropped.
#[derive(Debug)]
pub struct Watch {
    told: Arc<Notify>,
    task: AbortHandle,
}

impl Watch {
    /// Begins to watch the files of all owners, and those on the system bus if `on_bus`.
    pub(super) fn start(file: ResolvConf, on_bus: bool) -> Self {
        let told = Arc::new(Notify::new());
        let task = tokio::spawn(run(Arc::clone(&told), file, on_bus)).abort_handle();
        Self { told, task }
    }

    /// Waits until something may have changed since the last time.
    ///
    /// # Cancel safety
    ///
    /// A change that nobody waited for is told to the next who waits.
    pub async fn changed(&self) {
        self.told.notified().await;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(told: Arc<Notify>, file: ResolvConf, on_bus: bool) {
    let mut files = Files::watch(&file);
    let mut signals = subscribe(on_bus).await;
    loop {
        tokio::select! {
            () = changed(files.as_ref()) => {}
            // None when the bus ended.
            signal = signals.next(), if !signals.is_empty() => drop(signal),
        }
        tokio::time::sleep(SETTLE).await;
        // Made anew each time, as files are replaced and symlinks led elsewhere; and before anybody looks, so that
        // nothing happens between the look and the watch.
        files = Files::watch(&file);
        if signals.is_empty() {
            signals = subscribe(on_bus).await;
        }
        told.notify_one();
    }
}

/// Waits for a change of the files; for ever where they cannot be watched.
pub(super) async fn changed(files: Option<&Files>) {
    match files {
        Some(files) => {
            if let Err(error) = files.changed().await {
                debug!(%error, "Cannot watch the DNS settings any more");
                std::future::pending::<()>().await;
            }
        }
        None => std::future::pending().await,
    }
}

/// Listens on the system bus; to nobody where there is none, whose socket is a file that comes.
async fn subscribe(on_bus: bool) -> SelectAll<MessageStream> {
    if !on_bus {
        return SelectAll::new();
    }
    let subscribed = signals().await;
    subscribed.unwrap_or_else(|error| {
        debug!(%error, "Nobody to hear on the system bus");
        SelectAll::new()
    })
}

/// Owners appear and vanish, and say what they change.
async fn signals() -> Result<SelectAll<MessageStream>, zbus::Error> {
    let bus = Bus::open()
        .await
        .map_err(|error| zbus::Error::Failure(error.to_string()))?;
    let signal = || MatchRule::builder().msg_type(zbus::message::Type::Signal);
    let owner = |name: &'static str| {
        let rule = signal().sender(DAEMON.service).interface(DAEMON.interface);
        rule.member("NameOwnerChanged").arg(0, name).build()
    };
    let properties = |service: &'static str, path: &'static str| {
        let rule = signal()
            .sender(service)
            .interface("org.freedesktop.DBus.Properties");
        rule.member("PropertiesChanged")
            .path_namespace(path)
            .build()
    };
    let mut streams = SelectAll::new();
    for rule in [
        owner(resolved::SERVICE)?,
        owner(network_manager::SERVICE)?,
        properties(resolved::SERVICE, "/org/freedesktop/resolve1")?,
        properties(
            network_manager::SERVICE,
            "/org/freedesktop/NetworkManager/IP4Config",
        )?,
        properties(
            network_manager::SERVICE,
            "/org/freedesktop/NetworkManager/IP6Config",
        )?,
        properties(
            network_manager::SERVICE,
            "/org/freedesktop/NetworkManager/DnsManager",
        )?,
    ] {
        let queue = std::num::NonZeroUsize::new(SIGNALS);
        streams.push(MessageStream::for_match_rule(rule, bus.connection(), queue).await?);
    }
    Ok(streams)
}

/// An inotify instance and what to hear of it.
pub(super) struct Files {
    inotify: Inotify,
    /// The same instance; this end of a pipe reads any descriptor that can be waited for.
    ready: Receiver,
    /// Names of files in watched folders; other names there are nobody's concern.
    names: Vec<OsString>,
    /// Folders all of whose files count.
    whole: Vec<WatchDescriptor>,
}

impl Files {
    /// Watches all that may concern us; None where nothing can be watched.
    pub(super) fn watch(file: &ResolvConf) -> Option<Self> {
        match Self::open(file) {
            Ok(files) => Some(files),
            Err(error) => {
                debug!(%error, "Cannot watch the DNS settings");
                None
            }
        }
    }

    fn open(file: &ResolvConf) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let ready = Receiver::from_owned_fd_unchecked(inotify.as_fd().try_clone_to_owned()?)?;
        let mut files = Self {
            inotify,
            ready,
            names: Vec::new(),
            whole: Vec::new(),
        };
        files.file(Path::new(RESOLV_CONF));
        for source in file.sources() {
            files.file(&source);
        }
        files.file(Path::new("/run/dbus"));
        files.file(Path::new(BUS));
        for flavour in [Flavour::Debian, Flavour::Openresolv] {
            let watched = files.inotify.add_watch(flavour.records(), changes());
            files.whole.extend(watched.ok());
        }
        Ok(files)
    }

    /// Watches a file, which may be replaced or be a mount of its own.
    fn file(&mut self, path: &Path) {
        let folder = path.parent().map(PathBuf::from);
        let (Some(folder), Some(name)) = (folder, path.file_name()) else {
            return;
        };
        // What is not there cannot change; its folder says when it comes.
        if let Err(error) = self.inotify.add_watch(&folder, changes()) {
            debug!(%error, folder = %folder.display(), "Not watched");
        }
        self.names.push(name.to_owned());
        self.whole.extend(
            self.inotify
                .add_watch(path, AddWatchFlags::IN_CLOSE_WRITE)
                .ok(),
        );
    }

    /// Waits until something happens that concerns us.
    async fn changed(&self) -> io::Result<()> {
        loop {
            self.ready.readable().await?;
            if self.is_changed()? {
                return Ok(());
            }
            match self.ready.try_read(&mut [0; 4096]) {
                // More happened in between: look.
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads what happened; tells whether it concerns us.
    fn is_changed(&self) -> io::Result<bool> {
        match self.inotify.read_events() {
            Ok(events) => Ok(events.iter().any(|event| {
                let is_named = event
                    .name
                    .as_ref()
                    .is_some_and(|name| self.names.contains(name));
                let is_lost = event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
                is_named || is_lost || self.whole.contains(&event.wd)
            })),
            Err(Errno::EAGAIN) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

fn changes() -> AddWatchFlags {
    AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_MOVED_TO
}
