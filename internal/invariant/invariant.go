// Package invariant states contracts between the parts of this program. A
// broken contract is our bug, never bad input, so it panics; what comes from a
// disk, a socket or a person is answered with an error instead.
//
// [Assert] is always on and must cost O(1). What costs more stands behind
// [Checked], which is true only in binaries built with -tags invariants.
package invariant

import "fmt"

// Assert panics with the formatted message unless ok holds. The message names
// the contract, not the line: the panic's stack already has that. Arguments are
// boxed before ok is looked at, which allocates: where every record passes, put
// the call inside an if and pass false.
func Assert(ok bool, format string, args ...any) {
	if !ok {
		panic("invariant: " + fmt.Sprintf(format, args...))
	}
}
