package segfile

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev/devtest"
	"github.com/redoubt-storage/redoubt/slab"
)

// A story is what a recovery script works on: a log on a simulated disk, and
// what its writers know.
type story struct {
	*rig
	tapes map[byte]*tape
	sent  map[byte]redoubt.LSN  // the newest record that was ever sent to a segment
	first map[redoubt.LSN]int64 // of segment 1: where a record's run begins on the device
	lost  *devtest.Injection
}

// TestRecoveryScript runs testdata/recovery: what happens to a log, and what the
// next recovery says of each record, and why.
func TestRecoveryScript(t *testing.T) {
	s := &story{}
	datadriven.RunTest(t, "testdata/recovery", func(t *testing.T, c *datadriven.TestData) string {
		if s.rig != nil {
			s.rig.t = t
		}
		return s.run(t, c)
	})
}

func (s *story) run(t *testing.T, c *datadriven.TestData) string {
	t.Helper()
	switch c.Cmd {
	case "new":
		*s = story{rig: newRig(t), tapes: map[byte]*tape{}, sent: map[byte]redoubt.LSN{}, first: map[redoubt.LSN]int64{}}
		return ""
	case "create":
		n := s.arg(c, "segment", 1)
		s.tapes[byte(n)] = newTape(s.create(byte(n)))
		return ""
	case "append":
		return s.appendRange(t, c)
	case "seal":
		if err := s.write(s.store.NewSeal(s.mem(s.small))); err != nil {
			return err.Error()
		}
		return ""
	case "lose": // the next write is acknowledged by the device, and is nowhere
		s.lost = s.disk.Arm(devtest.Fault{Kind: devtest.LostWrite})
		return ""
	case "tear":
		return s.tear(t, c)
	case "flip":
		return s.flip(t, c)
	case "fence":
		return s.fence(c)
	case "restart":
		return s.restart(t, s.disk.Restart())
	}
	t.Fatalf("%s: no command %q", c.Pos, c.Cmd)
	return ""
}

// arg returns a number from the command line.
func (s *story) arg(c *datadriven.TestData, key string, def int) int {
	v := def
	c.MaybeScanArgs(s.t, key, &v)
	return v
}

// appendRange appends records one by one and waits for each: segment 1, or the
// one named, LSNs from to to.
func (s *story) appendRange(t *testing.T, c *datadriven.TestData) string {
	w := s.tapes[byte(s.arg(c, "segment", 1))]
	from := s.arg(c, "from", int(w.prev)+1)
	for lsn := redoubt.LSN(from); lsn <= redoubt.LSN(s.arg(c, "to", from)); lsn++ {
		off := s.head()
		if w.seg.ID[0] == 1 {
			s.first[lsn] = off
		}
		if err := s.append1(w, lsn, uint32(lsn%3), byte(lsn)); err != nil {
			return fmt.Sprintf("refused: %v\n", err)
		}
	}
	if s.lost != nil {
		s.lost.MustHaveInjected(t)
		s.lost = nil
	}
	return fmt.Sprintf("SCL %d\n", s.store.Info(w.seg).SCL)
}

// head returns where on the device the log goes on.
func (s *story) head() int64 {
	off, _ := s.store.log.deviceOffset(s.store.log.pos())
	return off
}

// tear sends one record of several sectors, cuts the power while it is on its
// way, and goes on with the disk of which left is said to the label's fragment.
func (s *story) tear(t *testing.T, c *datadriven.TestData) string {
	var left string
	c.ScanArgs(t, "left", &left)
	w := s.tapes[1]
	lsn := w.prev + 1
	s.first[lsn] = s.head()
	s.disk.Hold()
	s.begin(s.long(w, lsn, byte(lsn)))
	s.disk.Cut()
	want := strings.ReplaceAll(left, "-", " ")
	for d := range s.disk.CrashStates(devtest.CrashOptions{}) {
		if strings.HasSuffix(d.Label(), want) {
			return s.restart(t, d)
		}
	}
	t.Fatalf("%s: no crash state is %q", c.Pos, want)
	return ""
}

// flip flips a bit of what the log has of a record of segment 1.
func (s *story) flip(t *testing.T, c *datadriven.TestData) string {
	var in string
	c.ScanArgs(t, "in", &in)
	off, ok := s.first[redoubt.LSN(s.arg(c, "lsn", 0))]
	if !ok {
		t.Fatalf("%s: nobody knows where that record is", c.Pos)
	}
	at := map[string]int64{"run-header": 9, "block-header": RunHeaderSize + 9, "batch-header": RunHeaderSize + BlockHeaderSize + 9,
		"records": RunHeaderSize + BlockHeaderSize + 48 + 17}[in]
	if at == 0 {
		t.Fatalf("%s: no place %q", c.Pos, in)
	}
	s.disk.Flip(off+at, 4)
	return ""
}

// fence opens the volume anew: a new epoch, and everything above SCL is void.
func (s *story) fence(c *datadriven.TestData) string {
	w := s.tapes[1]
	i := s.store.Info(w.seg)
	e := i.Epoch + 1
	if err := s.change(func(m *slab.Buf) (*Change, error) { return s.store.PrepareEpoch(m, w.seg, e) }); err != nil {
		return err.Error()
	}
	tr := redoubt.Truncation{Epoch: e, From: i.SCL, To: i.SCL + 100}
	plan, err := s.store.PlanTruncate(w.seg, tr)
	if err == nil {
		err = s.change(func(m *slab.Buf) (*Change, error) { return s.store.PrepareTruncate(m, plan) })
	}
	if err != nil {
		return err.Error()
	}
	w.epoch, w.prev = e, i.SCL
	for page, lsn := range w.pages {
		for lsn > i.SCL {
			lsn -= 3 // each page has every third record
		}
		w.pages[page] = lsn
	}
	return fmt.Sprintf("epoch %d, (%d, %d] is void\n", e, tr.From, tr.To)
}

// restart opens a disk and says what the recovery found, and what each segment
// answers for the records that were ever sent to it.
func (s *story) restart(t *testing.T, disk *devtest.Disk) string {
	for n, w := range s.tapes {
		s.sent[n] = max(w.prev, s.sent[n])
	}
	n := &rig{t: t, disk: disk, mode: "fua", small: s.small, wide: s.wide, in: s.in}
	s.retire()
	if err := n.open(false); err != nil {
		return fmt.Sprintf("open: %v\n", err)
	}
	s.rig = n
	var b strings.Builder
	rec := n.store.Recovery()
	for _, h := range rec.Holes {
		fmt.Fprintf(&b, "hole of %d bytes, %v: the witness is %+d from its start\n", h.To-h.From, h.Class, int64(rec.Witness-h.From))
	}
	for i := range byte(9) {
		w := s.tapes[i]
		if w == nil {
			continue
		}
		g, ok := n.store.Segment(redoubt.SegmentID{i})
		if !ok {
			fmt.Fprintf(&b, "segment %d: gone\n", i)
			continue
		}
		w.seg = g
		info := n.store.Info(g)
		fmt.Fprintf(&b, "segment %d: %s\n", i, answers(info, g, s.sent[i]))
		if w.prev = info.Highest; w.pages[7] > w.prev {
			delete(w.pages, 7) // what was torn is sent again
		}
	}
	if len(rec.Damage) > 0 {
		fmt.Fprintf(&b, "check names %d damaged places\n", len(rec.Damage))
	}
	return b.String()
}

// answers says HAS, UNKNOWN or NEVER HAD for each LSN up to last and one more.
func answers(i Info, g *Segment, last redoubt.LSN) string {
	var out []string
	say := func(lsn redoubt.LSN) string {
		switch {
		case i.Truncation.Voids(lsn, 1):
			return "VOID"
		case lsn <= i.SCL:
			return "HAS"
		case g.spansHold(lsn):
			return "HAS (beyond a gap)"
		case i.Unknown.Reason != Known && lsn > i.Unknown.Above && lsn <= i.Unknown.To:
			return fmt.Sprintf("UNKNOWN (%v)", i.Unknown.Reason)
		}
		return "NEVER HAD"
	}
	for from := redoubt.LSN(1); from <= last+1; {
		to := from
		for to <= last && say(to+1) == say(from) {
			to++
		}
		if to == from {
			out = append(out, fmt.Sprintf("%d %s", from, say(from)))
		} else {
			out = append(out, fmt.Sprintf("%d-%d %s", from, to, say(from)))
		}
		from = to + 1
	}
	return strings.Join(out, ", ")
}

func (g *Segment) spansHold(lsn redoubt.LSN) bool {
	for _, s := range g.spans {
		if lsn > s.prev && lsn <= s.last {
			return true
		}
	}
	return false
}
