//! Tests that run themselves under each mechanism run once.
#![allow(dead_code, reason = "each test binary uses its part of this")]

/// Whether an earlier run of the tests has run those that run themselves under each mechanism: `STERNA_TEST_EACH=ran`, which `.ci/run`
/// sets where it forces one mechanism after another. Says so.
pub(crate) fn ran_already(test: &str) -> bool {
    let ran = std::env::var("STERNA_TEST_EACH").is_ok_and(|v| v == "ran");
    if ran {
        println!("SKIP {test}: STERNA_TEST_EACH says that it ran under each mechanism already");
    }
    ran
}
