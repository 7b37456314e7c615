//! Setting up a registry: its keys, its database and its settings, once.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::id::{Did, DomainId, DomainPrefix, IdentityKey, UnixTime};
use crate::os::files::{FileError, StateFile, create_folder, create_private, read_text};
use crate::os::paths;
use crate::os::tls::{Pin, ServerKey, TlsError};
use crate::os::{clock, random};
use crate::registry::store::StoreError;
use crate::registry::store::sqlite::SqliteStore;
use crate::statement::token::{OperatorToken, Reveal};
use crate::statement::{Head, Registry, Statement, StatementError};

/// How long the domain root vouches for the registry's key; renewed by the offline root.
const REGISTRY_LIFE: Duration = Duration::from_secs(10 * 365 * 86_400);

const KEY_VERSION: u32 = 1;

/// The commented settings that `init` fills in.
const SAMPLE: &str = include_str!("../../config/registry.toml");

/// Names of the files in a registry's directory.
#[derive(Clone, Debug)]
pub struct Files {
    dir: PathBuf,
}

impl Files {
    /// Names the files in `dir`.
    pub fn in_dir(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    /// Returns where the domain's root key is until its operator takes it offline.
    pub fn domain_root(&self) -> PathBuf {
        self.dir.join("domain-root.key")
    }

    /// Returns where the registry's own key is.
    pub fn key(&self) -> PathBuf {
        self.dir.join("registry.key")
    }

    /// Returns where the TLS key is.
    pub fn tls(&self) -> PathBuf {
        self.dir.join("tls.key")
    }

    /// Returns where the domain root's statement about the registry is.
    pub fn statement(&self) -> PathBuf {
        self.dir.join("registry.jwt")
    }

    /// Returns where the operator's token is.
    pub fn operator(&self) -> PathBuf {
        self.dir.join("operator.token")
    }

    /// Returns where the settings are.
    pub fn settings(&self) -> PathBuf {
        self.dir.join("registry.toml")
    }

    /// Returns where the database is.
    pub fn database(&self) -> PathBuf {
        self.dir.join("registry.db")
    }

    fn all(&self) -> [PathBuf; 7] {
        [
            self.domain_root(),
            self.key(),
            self.tls(),
            self.statement(),
            self.operator(),
            self.settings(),
            self.database(),
        ]
    }
}

/// What a new registry is to be.
#[derive(Clone, Debug)]
pub struct Plan {
    pub dir: PathBuf,
    pub listen: SocketAddr,
    /// Where callers find it; None means the listening address.
    pub url: Option<String>,
}

/// A registry that was set up.
#[derive(Clone, Debug)]
pub struct Initialised {
    pub files: Files,
    pub url: String,
    pub domain: DomainId,
    pub prefix: DomainPrefix,
    pub registry: Did,
    pub operator: Did,
    pub pin: Pin,
}

/// Why a registry was not set up; nothing was left behind.
#[derive(Debug, Error)]
pub enum InitError {
    #[error("{} exists already; this directory holds a registry", .0.display())]
    Exists(PathBuf),
    #[error("nobody can reach {0}: name the URL callers use, as https://registry.example.org:8443")]
    NeedsUrl(SocketAddr),
    #[error("`{0}` is not a URL of the form https://host:port")]
    BadUrl(String),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Statement(#[from] StatementError),
}

/// A key as it lies on disk.
#[derive(Deserialize, Serialize)]
struct KeyFile {
    #[serde(default)]
    v: u32,
    key: IdentityKey,
}

/// Sets up a registry in a directory that holds none; after an error nothing is left behind.
pub async fn init(plan: &Plan) -> Result<Initialised, InitError> {
    let url = url_of(plan)?;
    let files = Files::in_dir(&plan.dir);
    if let Some(found) = files.all().into_iter().find(|path| path.exists()) {
        return Err(InitError::Exists(found));
    }
    create_folder(&plan.dir)?;
    let made = write(plan, &files, url).await;
    if made.is_err() {
        // All of it was absent a moment ago, so all of it is ours.
        for path in files.all() {
            drop(fs::remove_file(path));
        }
    }
    made
}

async fn write(plan: &Plan, files: &Files, url: String) -> Result<Initialised, InitError> {
    let now = clock::unix();
    let [root, key, operator] = [(); 3].map(|()| IdentityKey::from_seed(random::seed()));
    let tls = ServerKey::generate()?;
    let statement = registry_statement(&root, key.did(), tls.pin(), now)?;
    let token = OperatorToken {
        key: operator.clone(),
        url: url.clone(),
        pin: tls.pin().to_string(),
        domain: root.did().into(),
    };
    create_private(&files.domain_root(), &key_text(&root))?;
    create_private(&files.key(), &key_text(&key))?;
    create_private(&files.tls(), &tls.to_pem())?;
    create_private(&files.statement(), &format!("{}\n", statement.text()))?;
    let secret = Zeroizing::new(format!("{}\n", token.reveal()));
    create_private(&files.operator(), &secret)?;
    create_private(
        &files.settings(),
        &settings_text(plan, &url, operator.did()),
    )?;
    SqliteStore::create(&files.database(), &epoch())
        .await?
        .close()
        .await;
    Ok(Initialised {
        files: files.clone(),
        url,
        domain: root.did().into(),
        prefix: DomainPrefix::of(&root.did().into()),
        registry: key.did(),
        operator: operator.did(),
        pin: tls.pin(),
    })
}

/// What a registry proves itself with.
#[derive(Debug)]
pub struct Identity {
    pub key: IdentityKey,
    pub tls: ServerKey,
    pub statement: Statement<Registry>,
}

/// Under which names a service manager hands over what is in `registry.key` and `tls.key`.
const KEY_CREDENTIAL: &str = "agentnet.registry-key";
const TLS_CREDENTIAL: &str = "agentnet.registry-tls-key";

/// Reads a registry's keys; a missing or damaged one is an error and stays as it is.
///
/// Those that the service manager hands over go before those in the directory.
pub fn load(files: &Files) -> Result<Identity, FileError> {
    let given = |name| paths::credential(name, &paths::environment);
    let key = read_key(&given(KEY_CREDENTIAL).unwrap_or_else(|| files.key()))?;
    let damaged = |path: PathBuf, why: String| FileError::Damaged { path, why };
    let tls = given(TLS_CREDENTIAL).unwrap_or_else(|| files.tls());
    let pem = Zeroizing::new(read_text(&tls)?);
    let tls = ServerKey::from_pem(&pem).map_err(|e| damaged(tls, e.to_string()))?;
    let statement = Statement::<Registry>::open(&read_text(&files.statement())?)
        .map_err(|error| damaged(files.statement(), error.to_string()))?;
    let matches = statement.subject() == key.did();
    if !matches || statement.claims().pin != tls.pin().to_string() {
        let why = "it names other keys than registry.key and tls.key".to_owned();
        return Err(damaged(files.statement(), why));
    }
    Ok(Identity {
        key,
        tls,
        statement,
    })
}

fn read_key(path: &Path) -> Result<IdentityKey, FileError> {
    let (_, found) = StateFile::open::<KeyFile>(path, KEY_VERSION)?;
    let missing = || FileError::Read {
        path: path.to_owned(),
        source: std::io::ErrorKind::NotFound.into(),
    };
    Ok(found.ok_or_else(missing)?.key)
}

fn key_text(key: &IdentityKey) -> Zeroizing<String> {
    let file = KeyFile {
        v: KEY_VERSION,
        key: key.clone(),
    };
    let text = serde_json::to_string(&file).expect("a key is plain text");
    Zeroizing::new(format!("{text}\n"))
}

fn registry_statement(
    root: &IdentityKey,
    key: Did,
    pin: Pin,
    now: UnixTime,
) -> Result<Statement<Registry>, StatementError> {
    let head = Head {
        subject: key,
        network: None,
        issued: now,
        expires: now + REGISTRY_LIFE,
        seq: now.as_millis(),
    };
    let pin = pin.to_string();
    Statement::sign(root, head, Registry { pin })
}

fn url_of(plan: &Plan) -> Result<String, InitError> {
    let Some(url) = &plan.url else {
        if plan.listen.ip().is_unspecified() || plan.listen.port() == 0 {
            return Err(InitError::NeedsUrl(plan.listen));
        }
        return Ok(format!("https://{}", plan.listen));
    };
    let url = url.trim_end_matches('/');
    if host_of(url).is_none() || url.contains(['"', '\\']) || url.chars().any(char::is_control) {
        return Err(InitError::BadUrl(url.to_owned()));
    }
    Ok(url.to_owned())
}

/// Returns the host of `https://host:port`; None for any other text.
pub fn host_of(url: &str) -> Option<String> {
    let rest = url.strip_prefix("https://")?;
    if rest.contains(['/', '?', '#', '@', ' ']) {
        return None;
    }
    let host = match rest.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => {
            port.parse::<u16>().ok()?;
            host
        }
        Some(_) | None => rest,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    (!host.is_empty()).then(|| host.to_owned())
}

/// Returns the sample with this registry's own lines live.
fn settings_text(plan: &Plan, url: &str, operator: Did) -> String {
    // Sections have settings of the same names.
    let mut is_top = true;
    let lines = SAMPLE.lines().map(|line| {
        is_top &= !line.starts_with('[');
        if !is_top {
            line.to_owned()
        } else if line.starts_with("#listen = ") {
            format!("listen = \"{}\"", plan.listen)
        } else if line.starts_with("#url = ") {
            format!("url = \"{url}\"")
        } else if line.starts_with("#operators = ") {
            format!("operators = [\"{operator}\"]")
        } else {
            line.to_owned()
        }
    });
    lines.map(|line| line + "\n").collect()
}

/// Returns a text that no other database has.
fn epoch() -> String {
    let [a, b, c, d, e, f, ..] = random::seed();
    [a, b, c, d, e, f]
        .map(|byte| format!("{byte:02x}"))
        .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_https_host_and_port() {
        assert_eq!(host_of("https://r.test:8443").as_deref(), Some("r.test"));
        assert_eq!(
            host_of("https://[2001:db8::1]:8443").as_deref(),
            Some("2001:db8::1")
        );
        assert_eq!(host_of("https://r.test").as_deref(), Some("r.test"));
        for text in [
            "http://r.test",
            "https://",
            "https://r:x",
            "https://r/x",
            "https://a@r:1",
        ] {
            assert_eq!(host_of(text), None, "{text}");
        }
    }
}
