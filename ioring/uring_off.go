//go:build !giouring

package ioring

import "errors"

const uringInside = false

// errNotInside is why a binary without the build tag has no ring.
var errNotInside = errors.New("not inside this binary (build with -tags giouring -ldflags=-checklinkname=0)")

func openUring(int, Options) (Engine, string, error) { return nil, "", errNotInside }
