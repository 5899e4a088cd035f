package redo

import (
	"testing"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/internal/invariant"
)

// TestNoAllocations holds the promise that neither a record nor a batch nor a
// page sum costs an allocation, on either side.
func TestNoAllocations(t *testing.T) {
	var (
		vol   = redoubt.VolumeID{1: 1, 15: 15}
		buf   = make([]byte, 4096)
		data  = make([]byte, 100)
		page  = make([]byte, redoubt.PageSize)
		b     Builder
		batch []byte
		h     Header
	)
	cases := []struct {
		name string
		f    func()
	}{
		{"build", func() {
			b.Reset(buf, vol, 700, 1<<40, 1<<33)
			b.Write(1<<33+1000, 3000, 1<<20, 4000, data, false)
			b.Fill(1<<33+2000, 3000, 1<<33+1000, 300, 3000, 7, false)
			b.Move(1<<33+3000, 3001, 0, 5000, 300, 700, true)
			b.Mark(1<<33+4000, 1<<60, 1<<33)
			batch = b.Finish()
		}},
		{"verify", func() {
			var err error
			if h, err = Verify(vol, batch); err != nil {
				t.Fatal(err)
			}
		}},
		{"iterate and apply", func() {
			it := Records(batch, h)
			for it.Next() {
				it.Apply(page)
			}
			if it.Err() != nil {
				t.Fatal(it.Err())
			}
		}},
		{"record at", func() {
			if _, err := RecordAt(batch, BatchHeaderSize, h.First); err != nil {
				t.Fatal(err)
			}
		}},
		{"page sum", func() { PageSum(vol, 1<<30, 1<<40, page) }},
	}
	for _, c := range cases {
		if n := testing.AllocsPerRun(100, c.f); n != 0 {
			t.Errorf("%s: %v allocations (invariants checked: %v)", c.name, n, invariant.Checked)
		}
	}
}
