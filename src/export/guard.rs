//! Who may ask: the `Host` header.
//!
//! A web page in a browser on this machine can have the browser fetch from loopback under a name of its own (DNS
//! rebinding). The browser then sends that name as `Host`, so names that are not ours are refused. Numbers cannot be
//! rebound and always pass.

use std::net::IpAddr;

/// Names that are served beside `localhost` and numeric addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hosts(Vec<String>);

impl Hosts {
    /// These names.
    pub fn new(names: impl IntoIterator<Item = String>) -> Self {
        Self(names.into_iter().map(|name| name.to_ascii_lowercase()).collect())
    }

    /// Is a request with this `Host` header served? One without is not.
    pub fn allow(&self, host: Option<&str>) -> bool {
        let Some(host) = host else { return false };
        let name = without_port(host).to_ascii_lowercase();
        let bare = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(&name);
        bare.parse::<IpAddr>().is_ok() || name == "localhost" || self.0.contains(&name)
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => {
            // A bare IPv6 address has colons of its own.
            if name.contains(':') && !name.starts_with('[') { host } else { name }
        }
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_localhost_and_given_names_are_served() {
        let hosts = Hosts::new(["GPU-Node".to_owned()]);
        for good in
            ["127.0.0.1:9477", "localhost", "LOCALHOST:1", "[::1]:9477", "::1", "10.0.0.7", "gpu-node:9477"]
        {
            assert!(hosts.allow(Some(good)), "{good}");
        }
    }

    #[test]
    fn names_of_others_are_not_served() {
        let hosts = Hosts::default();
        for bad in
            ["evil.example", "localhost.evil.example:9477", "127.0.0.1.evil.example", "", ":80", "[evil]:1"]
        {
            assert!(!hosts.allow(Some(bad)), "{bad}");
        }
        assert!(!hosts.allow(None));
    }
}
