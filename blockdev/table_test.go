package blockdev

import (
	"slices"
	"testing"

	"github.com/redoubt-storage/redoubt/blockdev/devtest"
	"pgregory.net/rapid"
)

// A table of several pages, read in several chunks, comes back as it was
// written, and a bad slot is found where it is.
func TestLargeTable(t *testing.T) {
	const extents = 3 * chunkPages * pageEntries / 2
	disk := devtest.New(int64(extents) * smallExtent)
	if _, err := FormatEngine(disk, disk.Size(), 512, smallOptions()); err != nil {
		t.Fatal(err)
	}
	d := mustOpen(t, disk, Options{})
	d.free.cursor = d.ExtentCount() - 3*pageEntries
	for i := range 5 * pageEntries {
		if _, err := d.Assign(RolePages, uint32(i), uint64(i), Normal); err != nil {
			t.Fatal(err)
		}
	}
	d.Close()
	pages := tablePages(d.ExtentCount())
	if pages <= chunkPages {
		t.Fatalf("%d pages are one chunk only", pages)
	}
	again := mustOpen(t, disk, Options{})
	if !slices.Equal(again.Extents(), d.Extents()) || again.FreeExtents(Reserve) != d.ExtentCount()-5*pageEntries {
		t.Error("the table came back changed")
	}
	// One unreadable slot in the middle of a chunk.
	bad := slotOff(pages, chunkPages+5, 1)
	in := disk.Arm(devtest.Fault{Kind: devtest.ReadError, Off: bad, Len: 1, Times: -1})
	ro := mustOpen(t, disk, Options{ReadOnly: true})
	in.MustHaveInjected(t)
	if f := ro.Found(); len(f) != 1 || f[0].Off != bad || f[0].Len != slotSize || f[0].Harmless {
		t.Errorf("found %v, want the slot at %d", f, bad)
	}
	if _, err := openSim(disk, Options{}); err == nil {
		t.Error("opened for writing without knowing a page's newest version")
	}
}

// The free map against a plain list.
func TestFreeMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(4, 200).Draw(t, "extents")
		ext := make([]Extent, n)
		for i := range ext {
			ext[i].Index = uint32(i)
		}
		m := newFreeMap(ext)
		used := make([]bool, n)
		count, cursor := n, 0
		t.Repeat(map[string]func(*rapid.T){
			"take": func(t *rapid.T) {
				if count == 0 {
					t.Skip("full")
				}
				want := cursor % n
				for used[want] {
					want = (want + 1) % n
				}
				if got := m.next(); got != want {
					t.Fatalf("next is %d, want %d", got, want)
				}
				m.set(want, false)
				used[want] = true
				count, cursor = count-1, want+1
			},
			"give": func(t *rapid.T) {
				i := rapid.IntRange(0, n-1).Draw(t, "extent")
				m.set(i, true)
				if used[i] {
					used[i] = false
					count++
				}
			},
			"": func(t *rapid.T) {
				if m.count != count {
					t.Fatalf("%d free, want %d", m.count, count)
				}
			},
		})
	})
}

// An extent that has used up its generations is not given out again.
func TestGenerationsDoNotWrap(t *testing.T) {
	disk := newSmall(t)
	d := mustOpen(t, disk, Options{})
	last := Extent{Index: 0, Gen: 1<<32 - 2}
	if err := d.commit(last); err != nil {
		t.Fatal(err)
	}
	d.free.cursor = 0
	if e := mustAssign(t, d); e.Index != 0 || e.Gen != 1<<32-1 {
		t.Fatalf("got %+v", e)
	}
	if err := d.Release(0); err != nil {
		t.Fatal(err)
	}
	for _, dev := range []*Device{d, mustOpen(t, disk, Options{})} {
		if n := dev.FreeExtents(Reserve); n != dev.ExtentCount()-1 {
			t.Errorf("%d free of %d, want all but one", n, dev.ExtentCount())
		}
	}
}
