//! What both web pages tell the browser.

/// Names and values of the headers of every answer, beside the policy on contents: take each file for what it
/// is said to be, be in no frame, keep nothing, and let no other site's page read it.
pub const HEADERS: [(&str, &str); 6] = [
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("x-frame-options", "DENY"),
    ("cache-control", "no-store"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
];
