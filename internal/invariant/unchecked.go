//go:build !invariants

package invariant

// Checked reports whether expensive checks are compiled in.
const Checked = false
