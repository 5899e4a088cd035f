package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev"
	"github.com/redoubt-storage/redoubt/peer"
	"github.com/redoubt-storage/redoubt/segfile"
)

// places says where on a device things lie.
type places struct {
	log, page, mapPage int64
}

// worn returns the devices of a node that has worked and was shut down, with log,
// pages and map pages on device 0.
func worn(t *testing.T, bin string) ([]string, places) {
	t.Helper()
	devices := formatFiles(t, bin, 2, "24MiB")
	p, err := startProcess(t, bin, devices, "-coalesce-age", "10ms")
	if err != nil {
		t.Fatal(err)
	}
	c, err := peer.Dial(t.Context(), p.addr, peer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s := newStream(1, 0, 3000)
	if err := s.attach(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	// More than the log may keep, so that its tail moves and roots are written.
	buf := make([]byte, 256<<10)
	for s.sent < 4000 {
		if err := c.Append(s.frame(buf, int(c.Welcome().Align), 40)); err != nil {
			t.Fatal(err)
		}
		s.catchUp(t, c)
	}
	// What is newest stays in the log: nobody may read below it any more, and the
	// floor doesn't move.
	if err := c.Append(s.frame(buf, int(c.Welcome().Align), 20)); err != nil {
		t.Fatal(err)
	}
	s.catchUp(t, c)
	c.Close()
	p.stop()
	wantClean(t, bin, "of a node that nobody touched", devices)
	return devices, find(t, devices[0], s.spec.Segment)
}

// catchUp asks until everything that was sent is durable.
func (s *stream) catchUp(t *testing.T, c *peer.Conn) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); s.acked < s.sent; {
		d, err := c.Describe(t.Context(), s.spec.Segment)
		if err != nil {
			t.Fatal(err)
		}
		if s.acked = d.SCL; time.Now().After(end) {
			t.Fatalf("SCL %d of %d that were sent", d.SCL, s.sent)
		}
	}
}

// find looks for a live batch, a page and a map page of a segment.
func find(t *testing.T, path string, id redoubt.SegmentID) places {
	t.Helper()
	dev, err := blockdev.Open(path, blockdev.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	store, free, err := openReadOnly(dev)
	if err != nil {
		t.Fatal(err)
	}
	defer free()
	g, ok := store.Segment(id)
	if !ok {
		t.Fatal("the segment is gone")
	}
	var at places
	if _, err := segfile.WalkLog(dev, dev.Super().Device, func(e segfile.LogEntry) {
		if e.Kind == segfile.BlockRedo && e.Batch.Last == store.Info(g).SCL {
			at.log = e.Offset + segfile.BlockHeaderSize + 200
		}
	}); err != nil {
		t.Fatal(err)
	}
	if st, err := store.PageState(g, 7); err == nil && st.Offset > 0 {
		at.page = st.Offset + 5000
	}
	plans := make([]segfile.MapPagePlan, 1)
	if n, _, pin := store.PlanMapPages(g, 0, plans); n == 1 {
		at.mapPage = store.SlotOffset(plans[0].Slot) + 300
		store.Unpin(pin)
	}
	if at.log == 0 || at.page == 0 || at.mapPage == 0 {
		t.Fatalf("not everything is there to be damaged: %+v", at)
	}
	return at
}

// edit changes a file in place.
func edit(t *testing.T, path string, off int64, change func([]byte)) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		t.Fatal(err)
	}
	before := b[0]
	if change(b[:]); b[0] == before {
		t.Fatal("the damage changes nothing")
	}
	if _, err := f.WriteAt(b[:], off); err != nil {
		t.Fatal(err)
	}
}

func flipBit(b []byte) { b[0] ^= 0x10 }

// copyFiles copies devices, so that each case damages its own.
func copyFiles(t *testing.T, paths []string) []string {
	t.Helper()
	dir := t.TempDir()
	var out []string
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, filepath.Join(dir, filepath.Base(p)))
		if err := os.WriteFile(out[len(out)-1], b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// A bit that flips anywhere on a device is found by check, which names the place
// and ends with status 1, or says, where a second copy makes it harmless, that it
// is one.
func TestCheckNamesEveryFlippedBit(t *testing.T) {
	bin := buildBinary(t)
	devices, at := worn(t, bin)
	for _, test := range []struct {
		name     string
		off      int64
		harmless bool
		says     string
	}{
		{"superblock copy A", 40, true, "superblock"},
		{"superblock copy B", 64<<10 + 40, true, "superblock"},
		{"extent table", 128<<10 + 40, true, "table"},
		{"log", at.log, false, "log position"},
		{"page", at.page, false, "page 7"},
		{"map page", at.mapPage, false, "map page 0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			mine := copyFiles(t, devices)
			edit(t, mine[0], test.off, flipBit)
			c, code := runCheck(t, bin, mine...)
			all := strings.Join(c.Devices[0].Notes, "\n")
			near := false
			for _, d := range c.Devices[0].Damage {
				all += "\n" + d.What
				near = near || d.Offset >= test.off-redoubt.PageSize && d.Offset <= test.off
			}
			t.Logf("exit status %d, %d damaged places: %.300s", code, c.Damage, all)
			if !strings.Contains(all, test.says) {
				t.Errorf("nothing is said of the %s", test.says)
			}
			if !test.harmless && (code != 1 || c.Damage < 1 || c.Damage > 3) {
				t.Errorf("exit status %d, %d damaged places", code, c.Damage)
			}
			if !test.harmless && !near {
				t.Errorf("the damage is at byte %d; none is named near it: %+v", test.off, c.Devices[0].Damage)
			}
			if len(c.Devices[1].Damage) > 0 {
				t.Errorf("the whole device is called damaged: %+v", c.Devices[1].Damage)
			}
		})
	}
}

// A device that is cut short, wiped or another node's: check says so and ends with
// status 1, and a node refuses to start and names the path; nothing is written.
func TestDevicesThatAreNotTheNodesOwnAreRefused(t *testing.T) {
	bin := buildBinary(t)
	devices, _ := worn(t, bin)
	other := formatFiles(t, bin, 2, "24MiB")
	for _, test := range []struct {
		name   string
		change func(t *testing.T, mine []string)
		says   string // by the node, of device 0
		check  int    // exit status
	}{
		{"cut short", func(t *testing.T, mine []string) {
			if err := os.Truncate(mine[0], 20<<20); err != nil {
				t.Fatal(err)
			}
		}, "truncated", 1},
		{"empty", func(t *testing.T, mine []string) {
			if err := os.Truncate(mine[0], 0); err != nil {
				t.Fatal(err)
			}
		}, "/d0", 1},
		{"wiped", func(t *testing.T, mine []string) {
			if err := os.WriteFile(mine[0], make([]byte, 24<<20), 0o644); err != nil {
				t.Fatal(err)
			}
		}, "/d0", 1},
		{"another node's", func(t *testing.T, mine []string) {
			if err := os.Rename(copyFiles(t, other)[0], mine[0]); err != nil {
				t.Fatal(err)
			}
		}, "foreign", 0},
		{"given twice", func(t *testing.T, mine []string) {
			if err := os.Rename(copyFiles(t, mine)[1], mine[0]); err != nil {
				t.Fatal(err)
			}
		}, "duplicate", 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			mine := copyFiles(t, devices)
			test.change(t, mine)
			before := copyFiles(t, mine)
			c, code := runCheck(t, bin, mine...)
			if code != test.check || code == 0 && c.Set == "" {
				t.Errorf("check: exit status %d, %+v", code, c)
			}
			p, err := startProcess(t, bin, mine)
			if err == nil {
				p.stop()
				t.Fatal("the node starts")
			}
			if !strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), filepath.Dir(mine[0])) {
				t.Errorf("the node says: %v", err)
			}
			for i := range mine {
				a, _ := os.ReadFile(mine[i])
				b, _ := os.ReadFile(before[i])
				if string(a) != string(b) {
					t.Errorf("device %d was written to", i)
				}
			}
		})
	}
}
