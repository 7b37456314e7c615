//! Settings from defaults, then file, then environment, then flags; the later wins.

pub mod gateway;
pub mod node;
#[cfg(test)]
mod reference;
mod registry;
mod unknown;

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;
use toml::{Table, Value, de::DeTable};

pub use gateway::{AttachSettings, GatewaySettings, GatewayUdpSettings, MetricsSettings};
pub use node::{
    ChannelSettings, DataplaneSettings, DnsMode, DnsSettings, LogFormat, LogLevel, LogSettings,
    MAX_WORKERS, NodeConfig, NodeMetricsSettings, NodeSettings, NodeWssSettings, PathMode,
    PathSettings, SearchSettings, SuiteChoice, UdpSettings, WssMode,
};
pub use registry::{LeaseSettings, LimitSettings, REGISTRY_PORT, RegistryConfig, RegistrySettings};

/// Far above any hand-written file; bounds what a wrong path can make us read.
const MAX_FILE: u64 = 256 * 1024; // bytes

/// Why settings cannot be used; the message names the place to mend.
#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("cannot read {}", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is larger than {MAX_FILE} bytes", .0.display())]
    TooLarge(PathBuf),
    #[error("{}:{line}: {message}", path.display())]
    Malformed {
        path: PathBuf,
        line: usize,
        message: String,
    },
    #[error("{}:{line}: unknown setting `{key}`, {}", path.display(), unknown::advice(nearest.as_deref()))]
    Unknown {
        path: PathBuf,
        line: usize,
        key: String,
        /// None when no known setting is alike.
        nearest: Option<String>,
    },
    #[error("environment variable {name}: {message}")]
    Environment { name: String, message: String },
    #[error("{0}")]
    Invalid(String),
}

/// The settings of one kind of daemon.
pub trait Settings: Default + DeserializeOwned + Serialize {
    /// Every key with its section, as `log.level`; a test holds it to the fields.
    const KEYS: &'static [&'static str];
    /// Those of them, or whole sections, that a running daemon takes up.
    const LIVE: &'static [&'static str];
    /// What stands before a key in the environment, as `AGENTNET_`.
    const ENV: &'static str;

    /// Returns how it logs.
    fn log(&self) -> LogSettings;

    /// Tells whether a running daemon takes up `key`.
    fn is_live(key: &str) -> bool {
        let section = key.split('.').next().unwrap_or(key);
        Self::LIVE
            .iter()
            .any(|live| *live == key || *live == section)
    }

    /// Checks what the types cannot say.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}

/// Settings given as flags.
#[derive(Clone, Debug, Default)]
pub struct Flags(Table);

impl Flags {
    /// Sets the dotted `key` when the flag was given.
    pub fn set(&mut self, key: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            insert(&mut self.0, key, value.into());
        }
    }
}

/// Loads settings: defaults, then the file, then `env`, then flags.
pub fn load<S: Settings>(
    file: Option<&Path>,
    env: &dyn Fn(&str) -> Option<String>,
    flags: Flags,
) -> Result<S, ConfigError> {
    let table = match file {
        Some(path) => file_layer::<S>(path, &read(path)?)?,
        None => Table::new(),
    };
    over_file(table, env, flags)
}

fn over_file<S: Settings>(
    mut table: Table,
    env: &dyn Fn(&str) -> Option<String>,
    flags: Flags,
) -> Result<S, ConfigError> {
    for key in S::KEYS {
        let name = env_name::<S>(key);
        if let Some(text) = env(&name) {
            let value = env_value::<S>(key, &text)
                .map_err(|message| ConfigError::Environment { name, message })?;
            insert(&mut table, key, value);
        }
    }
    merge(&mut table, flags.0);
    let settings = S::deserialize(Value::Table(table))
        .map_err(|error| ConfigError::Invalid(error.message().to_owned()))?;
    settings.check().map_err(ConfigError::Invalid)?;
    Ok(settings)
}

/// Returns the keys by which two settings differ.
pub fn differing<S: Settings>(one: &S, other: &S) -> Vec<&'static str> {
    let table = |settings| Value::try_from(settings).unwrap_or_else(|_| Table::new().into());
    let (one, other) = (table(one), table(other));
    let differs = |key: &&&str| look_up(&one, key) != look_up(&other, key);
    S::KEYS.iter().filter(differs).copied().collect()
}

fn look_up<'a>(table: &'a Value, key: &str) -> Option<&'a Value> {
    key.split('.')
        .try_fold(table, |within, name| within.get(name))
}

/// Returns the environment variable that sets `key`.
pub fn env_name<S: Settings>(key: &str) -> String {
    format!("{}{}", S::ENV, key.replace('.', "_").to_ascii_uppercase())
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let mut text = String::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(MAX_FILE + 1)
        .read_to_string(&mut text)
        .map_err(unreadable)?;
    if text.len() as u64 > MAX_FILE {
        return Err(ConfigError::TooLarge(path.to_owned()));
    }
    Ok(text)
}

/// Parses a file and checks its keys and types while the lines are still known.
fn file_layer<S: Settings>(path: &Path, text: &str) -> Result<Table, ConfigError> {
    let malformed = |error: &toml::de::Error| ConfigError::Malformed {
        path: path.to_owned(),
        line: line_of(text, error.span().map_or(0, |span| span.start)),
        message: error.message().trim().replace('\n', ", "),
    };
    let parsed = DeTable::parse(text).map_err(|error| malformed(&error))?;
    if let Some(found) = unknown::find(parsed.get_ref(), S::KEYS) {
        return Err(ConfigError::Unknown {
            path: path.to_owned(),
            line: line_of(text, found.at),
            nearest: unknown::nearest(&found.key, S::KEYS).map(str::to_owned),
            key: found.key,
        });
    }
    let settings = toml::from_str::<S>(text).map_err(|error| malformed(&error))?;
    settings.check().map_err(|message| ConfigError::Malformed {
        path: path.to_owned(),
        line: 1,
        message,
    })?;
    toml::from_str(text).map_err(|error| malformed(&error))
}

fn line_of(text: &str, at: usize) -> usize {
    let before = text.get(..at).unwrap_or(text);
    1 + before.bytes().filter(|b| *b == b'\n').count()
}

/// Reads a variable as the first of text, list and TOML literal that the setting accepts.
fn env_value<S: Settings>(key: &str, text: &str) -> Result<Value, String> {
    let list = text.split(',').map(|item| Value::from(item.trim()));
    let literal = text.parse::<Value>().ok();
    let mut first_error = None;
    for value in [
        Some(Value::from(text)),
        Some(Value::Array(list.collect())),
        literal,
    ] {
        let Some(value) = value else { continue };
        let mut table = Table::new();
        insert(&mut table, key, value.clone());
        match S::deserialize(Value::Table(table)) {
            Ok(_) => return Ok(value),
            Err(error) => {
                first_error.get_or_insert_with(|| error.message().trim().replace('\n', ", "));
            }
        }
    }
    Err(first_error.unwrap_or_default())
}

fn insert(table: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value);
        }
        Some((section, rest)) => {
            let inner = table
                .entry(section)
                .or_insert_with(|| Value::Table(Table::new()));
            if let Some(inner) = inner.as_table_mut() {
                insert(inner, rest, value);
            }
        }
    }
}

fn merge(below: &mut Table, above: Table) {
    for (key, value) in above {
        match (below.get_mut(&key), value) {
            (Some(Value::Table(inner)), Value::Table(value)) => merge(inner, value),
            (_, value) => {
                below.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Holds a sample to its type: it parses as shipped, every known key stands in it
    /// commented out as `#key = value`, and uncommented it parses too.
    pub(crate) fn check_sample<S: Settings>(sample: &str) {
        file_layer::<S>(Path::new("sample"), sample).unwrap();
        let lines = sample.lines().map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.is_empty() && !rest.starts_with([' ', '#']) => rest,
            Some(_) | None => line,
        });
        let live = lines.collect::<Vec<_>>().join("\n");
        let table = file_layer::<S>(Path::new("sample"), &live).unwrap();

        let mut named = Vec::new();
        keys_of(&Value::Table(table), "", &mut named);
        assert_eq!(named, sorted(S::KEYS), "keys named by the sample");
        let mut fields = Vec::new();
        json_keys(
            &serde_json::to_value(S::default()).unwrap(),
            "",
            &mut fields,
        );
        assert_eq!(fields, sorted(S::KEYS), "keys of the type");
        for live in S::LIVE {
            let is_part = |key: &&str| *key == *live || key.starts_with(&format!("{live}."));
            assert!(S::KEYS.iter().any(is_part), "{live} is no setting");
        }
    }

    fn sorted(keys: &[&str]) -> Vec<String> {
        let mut keys = keys.iter().map(|k| (*k).to_owned()).collect::<Vec<_>>();
        keys.sort();
        keys
    }

    fn keys_of(value: &Value, prefix: &str, out: &mut Vec<String>) {
        match value.as_table() {
            Some(table) => table
                .iter()
                .for_each(|(key, v)| keys_of(v, &format!("{prefix}.{key}"), out)),
            None => out.push(prefix.trim_start_matches('.').to_owned()),
        }
        out.sort();
    }

    fn json_keys(value: &serde_json::Value, prefix: &str, out: &mut Vec<String>) {
        match value.as_object() {
            Some(map) => map
                .iter()
                .for_each(|(key, v)| json_keys(v, &format!("{prefix}.{key}"), out)),
            None => out.push(prefix.trim_start_matches('.').to_owned()),
        }
        out.sort();
    }

    fn with_file(
        text: &str,
        env: &[(&str, &str)],
        flags: Flags,
    ) -> Result<NodeSettings, ConfigError> {
        let env = |name: &str| {
            let found = env.iter().find(|(n, _)| *n == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let table = file_layer::<NodeSettings>(Path::new("agentnet.toml"), text)?;
        over_file(table, &env, flags)
    }

    #[test]
    fn later_sources_win_and_leave_the_rest() {
        let text = "suffix = 'lab'\n[log]\nlevel = 'warn'\nformat = 'json'\n";
        let mut flags = Flags::default();
        flags.set("log.level", Some("trace"));
        flags.set("suffix", None::<String>);
        let env = [
            ("AGENTNET_LOG_LEVEL", "debug"),
            ("AGENTNET_DNS_MODE", "none"),
        ];

        let settings = with_file(text, &env, flags).unwrap();

        assert_eq!(settings.suffix.to_string(), "lab");
        assert_eq!(settings.log.level, LogLevel::Trace);
        assert_eq!(settings.log.format, LogFormat::Json);
        assert_eq!(settings.dns.mode, DnsMode::None);
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line_and_the_nearest() {
        let error = with_file("# c\n[udp]\nprt = 1\n", &[], Flags::default()).unwrap_err();

        let text = error.to_string();
        assert!(
            text.contains(".toml:3: unknown setting `udp.prt`"),
            "{text}"
        );
        assert!(text.ends_with("did you mean `udp.port`?"), "{text}");
    }

    #[test]
    fn a_wrong_type_is_refused_with_its_line() {
        for (text, line, why) in [
            ("\nsuffix = 3", 2, "expected a string"),
            ("[dns]\nmode = 'bind'", 2, "unknown variant"),
            ("log = 'debug'", 1, "expected struct"),
            ("suffix = 'A B'", 1, "not a label"),
            ("suffix = ", 1, "string values must be quoted"),
            ("[udp]\nport = 65536", 2, "u16"),
        ] {
            let error = with_file(text, &[], Flags::default())
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(&format!(".toml:{line}: ")),
                "{text}: {error}"
            );
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn the_environment_names_itself_in_errors() {
        let port = [("AGENTNET_UDP_PORT", "7")];
        let settings = with_file("", &port, Flags::default()).unwrap();
        assert_eq!(settings.udp.port, 7);

        let wrong = [("AGENTNET_UDP_PORT", "seven")];
        let error = with_file("", &wrong, Flags::default()).unwrap_err();
        assert!(error.to_string().contains("AGENTNET_UDP_PORT: "), "{error}");
    }

    #[test]
    fn the_number_of_workers_has_bounds() {
        for (text, is_good) in [("1", true), ("8", true), ("0", false), ("9", false)] {
            let workers = [("AGENTNET_DATAPLANE_WORKERS", text)];
            let settings = with_file("", &workers, Flags::default());

            assert_eq!(settings.is_ok(), is_good, "{text}");
        }
    }

    #[test]
    fn the_samples_are_true() {
        check_sample::<NodeSettings>(include_str!("../../config/agentnet.toml"));
        check_sample::<GatewaySettings>(include_str!("../../config/gateway.toml"));
    }
}
