//! Every kept input of every target, on stable Rust and without libFuzzer.

/// One test and not one a target: settings are variables of the process, which the other targets read.
#[test]
fn every_kept_input() {
    let mut targets = sterna_fuzz::TARGETS;
    targets.sort_by_key(|t| t.0 == "settings");
    for (name, target) in targets {
        for (path, input) in sterna_fuzz::corpus(name) {
            println!("{}", path.display());
            target(&input);
        }
    }
}
