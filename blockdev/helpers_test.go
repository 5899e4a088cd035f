package blockdev

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev/devtest"
	"github.com/redoubt-storage/redoubt/ioring"
)

// A small device: 16 extents of 256 KiB behind one table page.
const (
	smallExtent = 256 << 10
	smallSize   = 1<<20 + 16*smallExtent
)

func id(c byte) (r redoubt.ID) {
	copy(r[:], bytes.Repeat([]byte{c}, len(r)))
	return r
}

// smallOptions formats a device the same way every time.
func smallOptions() FormatOptions {
	return FormatOptions{
		ExtentSize: smallExtent,
		Cluster:    redoubt.ClusterID(id(0xcc)),
		Node:       redoubt.NodeID(id(0xaa)),
		device:     redoubt.DeviceID(id(0xdd)),
		now:        time.Unix(1700000000, 0),
	}
}

func newSmall(t testing.TB) *devtest.Disk {
	t.Helper()
	d := devtest.New(smallSize)
	if _, err := FormatEngine(d, d.Size(), d.BlockSize(), smallOptions()); err != nil {
		t.Fatal(err)
	}
	return d
}

func openSim(e *devtest.Disk, o Options) (*Device, error) {
	return OpenEngine(e, e.Size(), e.BlockSize(), o)
}

func mustOpen(t testing.TB, e *devtest.Disk, o Options) *Device {
	t.Helper()
	d, err := openSim(e, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func mustAssign(t testing.TB, d *Device) Extent {
	t.Helper()
	e, err := d.Assign(RoleLog, 0, 1, Normal)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// aligned returns n bytes of c, aligned to a page, until the end of the test.
func aligned(t testing.TB, n int, c byte) []byte {
	t.Helper()
	b, err := newScratch(n)
	if err != nil {
		t.Fatal(err)
	}
	copy(b, bytes.Repeat([]byte{c}, n))
	return b
}

// A nullEngine completes everything at once and keeps nothing: the floor for
// what this package costs by itself.
type nullEngine struct{}

func (nullEngine) Submit(ops ...*ioring.Op) {
	for _, op := range ops {
		op.Done(op, nil)
	}
}
func (nullEngine) Name() string        { return "null" }
func (nullEngine) Stats() ioring.Stats { return ioring.Stats{} }
func (nullEngine) Close() error        { return nil }

// table prints the extents in use or of a later generation than the first.
func table(d *Device) string {
	var b bytes.Buffer
	for _, e := range d.Extents() {
		if e.Role != RoleFree || e.Gen != 0 {
			fmt.Fprintf(&b, "extent %d: generation %d, %v, owner %d, seq %d\n", e.Index, e.Gen, e.Role, e.Owner, e.Seq)
		}
	}
	return b.String()
}
