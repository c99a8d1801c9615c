//! Log lines on standard error, as text or JSON. Set up once by the process;
//! libraries only emit `tracing` events. Nothing here reads the environment.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::{LogFormat, LogLevel};

/// Installs the process's log output. A second call changes nothing.
pub fn init(format: LogFormat, level: LogLevel) {
    install(format, level, std::io::stderr);
}

fn install<W>(format: LogFormat, level: LogLevel, writer: W)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let _already_set = match format {
        LogFormat::Text => tracing::subscriber::set_global_default(
            builder(level).with_ansi(false).with_target(false).with_writer(writer).finish(),
        ),
        LogFormat::Json => tracing::subscriber::set_global_default(
            builder(level).json().flatten_event(true).with_writer(writer).finish(),
        ),
    };
}

type Builder = tracing_subscriber::fmt::SubscriberBuilder<
    tracing_subscriber::fmt::format::DefaultFields,
    tracing_subscriber::fmt::format::Format,
    EnvFilter,
>;

fn builder(level: LogLevel) -> Builder {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(directives(level)))
        // They would be printed, and printing where the disk is full panics.
        .log_internal_errors(false)
}

/// Our crates at `level`; libraries one step quieter, because their details
/// (each QUIC frame, each TLS message) drown ours.
fn directives(level: LogLevel) -> String {
    let libraries = match level {
        LogLevel::Error => LogLevel::Error,
        LogLevel::Warn | LogLevel::Info | LogLevel::Debug => LogLevel::Warn,
        LogLevel::Trace => LogLevel::Debug,
    };
    let ours = ["warren", "warren_node", "warren_os", "warren_proto", "warren_control"];
    let mut text = libraries.to_string();
    if !matches!(level, LogLevel::Trace) {
        // It warns of each unreachable address; whoever dials says so better.
        text.push_str(",quinn_udp=error");
    }
    for target in ours {
        text.push_str(&format!(",{target}={level}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn json_lines_parse_and_the_level_filters() {
        let captured = Captured::default();
        let writer = captured.clone();
        let subscriber = builder(LogLevel::Info)
            .json()
            .flatten_event(true)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(target: "warren_node", peer = "gpu-1", "joined");
            tracing::debug!(target: "warren_node", "hidden");
            tracing::info!(target: "quinn", "hidden too");
        });
        let text = String::from_utf8(captured.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 1, "{text}");
        let line: serde_json::Value = serde_json::from_str(lines[0]).unwrap();
        assert_eq!((&line["message"], &line["peer"]), (&"joined".into(), &"gpu-1".into()));
        assert_eq!(line["level"], "INFO");
    }

    #[test]
    fn every_level_makes_a_valid_filter() {
        for word in LogLevel::WORDS {
            let level = word.parse().unwrap();
            assert!(EnvFilter::try_new(directives(level)).is_ok(), "{word}");
        }
    }
}
