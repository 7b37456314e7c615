//! Pure: puts stable pseudonyms into a text for whatever tells who or where somebody is, and hides secrets.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// Runs of letters and digits this long are keys, hashes or tokens, unless they are words.
const KEY: usize = 32;

/// Hexadecimal digits in a row, apart by dots, that are the zone of a network (RFC 3596 section 2.5).
const NIBBLES: usize = 6;

/// Remembers who got which pseudonym.
#[derive(Clone, Debug, Default)]
pub(super) struct Redactor {
    /// What is replaced wherever it stands by itself, in lower case.
    words: BTreeMap<String, String>,
    /// What is replaced wherever it stands.
    phrases: BTreeMap<String, String>,
    /// Addresses and keys that were seen.
    seen: BTreeMap<String, String>,
    counts: BTreeMap<&'static str, usize>,
}

impl Redactor {
    /// Takes that `word` is the name of something of a kind.
    pub(super) fn word(&mut self, kind: &'static str, word: &str) {
        let word = word.to_ascii_lowercase();
        if !word.is_empty() && !self.words.contains_key(&word) {
            let pseudonym = self.pseudonym(kind);
            self.words.insert(word, pseudonym);
        }
    }

    /// Takes an agent's full name apart: the network's label stands before the suffix.
    pub(super) fn full_name(&mut self, name: &str, suffix: &str) {
        let end = format!(".{suffix}");
        let labels = name.strip_suffix(&end).unwrap_or(name);
        if let Some((agent, network)) = labels.rsplit_once('.') {
            self.word("network", network);
            agent.split('.').for_each(|label| self.word("agent", label));
        } else if !labels.starts_with("did:") {
            self.word("agent", labels);
        }
    }

    /// Takes that `text`, as a host's name, is replaced wherever it stands.
    pub(super) fn phrase(&mut self, kind: &'static str, text: &str) {
        if text.len() > 1 && text.parse::<IpAddr>().is_err() && !self.phrases.contains_key(text) {
            let pseudonym = self.pseudonym(kind);
            self.phrases.insert(text.to_owned(), pseudonym);
        }
    }

    /// Returns `text` without what tells of somebody.
    pub(super) fn redact(&mut self, text: &str) -> String {
        let mut text = text.to_owned();
        let mut phrases = self.phrases.iter().collect::<Vec<_>>();
        phrases.sort_by_key(|(phrase, _)| std::cmp::Reverse(phrase.len()));
        for (phrase, pseudonym) in phrases {
            text = text.replace(phrase.as_str(), pseudonym);
        }
        let text = self.hosts(&text);
        let is_key =
            |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '+' | '/' | '=');
        let text = runs(&text, is_key, |run| self.key(run));
        let is_address = |c: char| c.is_ascii_hexdigit() || matches!(c, ':' | '.');
        let text = runs(&text, is_address, |run| self.address(run));
        let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        runs(&text, is_word, |run| {
            self.words.get(&run.to_ascii_lowercase()).cloned()
        })
    }

    /// Hides the hosts of URLs, with what logs in there.
    fn hosts(&mut self, text: &str) -> String {
        let mut parts = text.split("://");
        let mut whole = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let end = part.find(|c: char| c.is_whitespace() || "/\"'`<>,;)".contains(c));
            let (authority, rest) = part.split_at(end.unwrap_or(part.len()));
            let host = authority
                .rsplit_once('@')
                .map_or(authority, |(_, host)| host);
            let is_address = host.starts_with('[') || host.parse::<SocketAddr>().is_ok();
            let (name, port) = match host.rsplit_once(':') {
                Some((name, port)) if !is_address => (name, format!(":{port}")),
                Some(_) | None => (host, String::new()),
            };
            let is_known = name.starts_with("host-");
            let shown = if is_address || is_known || name.parse::<IpAddr>().is_ok() {
                host.to_owned()
            } else {
                self.phrase("host", name);
                let known = self.phrases.get(name).cloned();
                format!("{}{port}", known.unwrap_or_default())
            };
            whole.push_str("://");
            whole.push_str(&shown);
            whole.push_str(rest);
        }
        whole
    }

    fn key(&mut self, run: &str) -> Option<String> {
        let is_token = run.starts_with("agn1_") || run.starts_with("agno1_");
        let is_word = !run
            .chars()
            .any(|c| c.is_ascii_digit() || c.is_ascii_uppercase());
        let is_key = is_token || (run.len() >= KEY && !is_word);
        is_key.then(|| self.of("key", run))
    }

    fn address(&mut self, run: &str) -> Option<String> {
        let bare = run.trim_end_matches(['.', ':']);
        // `::` ends an address and is no punctuation.
        let (bare, rest) = match run.parse::<IpAddr>() {
            Ok(_) => (run, ""),
            Err(_) => (bare, run.get(bare.len()..).unwrap_or_default()),
        };
        let nibbles = bare.split('.').filter(|part| part.len() == 1).count();
        if nibbles >= NIBBLES && nibbles == bare.split('.').count() {
            return Some(format!("{}{rest}", self.of("zone", bare)));
        }
        let (ip, port) = match (bare.parse::<IpAddr>(), bare.parse::<SocketAddr>()) {
            (Ok(ip), _) => (ip, String::new()),
            (_, Ok(at)) => (at.ip(), format!(":{}", at.port())),
            _ => return None,
        };
        if ip.is_loopback() || ip.is_unspecified() {
            return None;
        }
        Some(format!("{}{port}{rest}", self.of("ip", &ip.to_string())))
    }

    fn of(&mut self, kind: &'static str, what: &str) -> String {
        if let Some(known) = self.seen.get(what) {
            return known.clone();
        }
        let pseudonym = self.pseudonym(kind);
        self.seen.insert(what.to_owned(), pseudonym.clone());
        pseudonym
    }

    fn pseudonym(&mut self, kind: &'static str) -> String {
        let count = self.counts.entry(kind).or_default();
        *count += 1;
        format!("{kind}-{count}")
    }
}

/// Replaces runs of characters that are of one class.
fn runs(
    text: &str,
    is_of: impl Fn(char) -> bool,
    mut replace: impl FnMut(&str) -> Option<String>,
) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(&is_of) {
        let (before, run) = rest.split_at(start);
        let end = run.find(|c| !is_of(c)).unwrap_or(run.len());
        let (run, after) = run.split_at(end);
        out.push_str(before);
        match replace(run) {
            Some(new) => out.push_str(&new),
            None => out.push_str(run),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redactor() -> Redactor {
        let mut redactor = Redactor::default();
        redactor.full_name("planner.acme.agent", "agent");
        redactor.phrase("host", "gateway.example.org");
        redactor
    }

    #[test]
    fn who_and_where_is_told_by_pseudonyms_that_stay() {
        let mut redactor = redactor();
        for (text, expected) in [
            ("planner.acme.agent is up", "agent-1.network-1.agent is up"),
            ("Planner and acme", "agent-1 and network-1"),
            ("explanner stays", "explanner stays"),
            (
                "at 198.51.100.7:16201, 198.51.100.7.",
                "at ip-1:16201, ip-1.",
            ),
            ("[fd11:0:0:1::2]:80 > fd11:0:0:1::2", "[ip-2]:80 > ip-2"),
            ("fd11:0:0:1::/64 on agn0", "ip-3/64 on agn0"),
            ("https://reg.example.org:8443/x", "https://host-2:8443/x"),
            (
                "reg.example.org and http://u:pw@reg.example.org",
                "host-2 and http://host-2",
            ),
            ("to gateway.example.org:16201", "to host-1:16201"),
            (
                "0.0.0.0:16200 [::]:16200 127.0.0.1",
                "0.0.0.0:16200 [::]:16200 127.0.0.1",
            ),
            ("1.0.0.0.0.0.0.0.1.1.d.f.ip6.arpa", "zone-1.ip6.arpa"),
            (
                "2026-11-22T10:12:09Z agentnet 0.1.0",
                "2026-11-22T10:12:09Z agentnet 0.1.0",
            ),
        ] {
            assert_eq!(redactor.redact(text), expected);
        }
    }

    #[test]
    fn keys_and_tokens_are_hidden_and_words_are_not() {
        let mut redactor = redactor();
        let did = "did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK";
        let tunnel = "pOCSkrZRwni5dyxWn1+puxPZBrRqtoyd+dwrRAn4ogk=";
        let token = "agn1_c2VjcmV0";

        let text = redactor.redact(&format!("{did} {tunnel} {token} {did}"));

        assert_eq!(text, "did:key:key-1 key-2 key-3 did:key:key-1");
        let metric = "agentnet_node_peer_last_inbound_timestamp_seconds 5";
        assert_eq!(redactor.redact(metric), metric);
        assert_eq!(
            redactor.redact("/var/lib/agentnet-registry/operator"),
            "/var/lib/agentnet-registry/operator"
        );
    }
}
