package powercut

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

const testSectors = 8

func newDisk(t testing.TB, at Moment, o DiskOptions) *Disk {
	t.Helper()
	if o.Size == 0 {
		o.Size = testSectors * SectorSize
	}
	d, err := NewDisk(NewSupply(at), nil, o)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// fill is n sectors of one byte.
func fill(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n*SectorSize) }

// put writes and answers.
func put(t testing.TB, d *Disk, b byte, sector, n int) *Write {
	t.Helper()
	w, err := d.Write(fill(b, n), int64(sector)*SectorSize, false)
	if err != nil {
		t.Fatal(err)
	}
	d.Answered(w)
	return w
}

func flush(t testing.TB, d *Disk) {
	t.Helper()
	if err := d.Flush(); err != nil {
		t.Fatal(err)
	}
}

// sectors gives the first byte of each sector, after asserting that a sector is
// of one piece.
func sectors(t testing.TB, image []byte) string {
	t.Helper()
	var out []byte
	for at := 0; at < len(image); at += SectorSize {
		s := image[at : at+SectorSize]
		if !bytes.Equal(s, fill(s[0], 1)) {
			t.Fatalf("sector %d is in pieces", at/SectorSize)
		}
		out = append(out, s[0])
	}
	return string(bytes.ReplaceAll(out, []byte{0}, []byte{'.'}))
}

// outcomes cuts many times and collects what was found.
func outcomes(t testing.TB, d *Disk) map[string]Damage {
	t.Helper()
	d.supply.Cut()
	found := make(map[string]Damage)
	for seed := range uint64(2000) {
		image, damage := d.AfterCut(rand.New(rand.NewPCG(seed, 1)))
		found[sectors(t, image)] = damage
	}
	return found
}

func TestFlushedWritesSurviveEveryCut(t *testing.T) {
	d := newDisk(t, Moment{}, DiskOptions{})
	put(t, d, 'a', 0, 3)
	put(t, d, 'b', 2, 2)
	flush(t, d)
	found := outcomes(t, d)
	if _, ok := found["aabb...."]; !ok || len(found) != 1 {
		t.Fatalf("found %v", found)
	}
}

func TestUnflushedWriteIsKeptDroppedOrTornInEveryWay(t *testing.T) {
	d := newDisk(t, Moment{}, DiskOptions{})
	put(t, d, 'a', 0, 3)
	found := outcomes(t, d)
	for _, want := range []string{"...", "aaa", "a..", ".a.", "..a", "aa.", "a.a", ".aa"} {
		damage, ok := found[want+"....."]
		if !ok {
			t.Errorf("%q was never found", want)
		}
		if lost := bytes.Count([]byte(want), []byte(".")); damage.SectorsLost != lost {
			t.Errorf("%q: %d sectors lost, reported %d", want, lost, damage.SectorsLost)
		}
	}
	if len(found) != 8 {
		t.Errorf("found %d states of three sectors", len(found))
	}
}

func TestEveryVersionSinceTheLastFlushCanSurface(t *testing.T) {
	d := newDisk(t, Moment{}, DiskOptions{})
	put(t, d, 'a', 0, 1)
	flush(t, d)
	put(t, d, 'b', 0, 1)
	put(t, d, 'c', 0, 1)
	found := outcomes(t, d)
	for _, want := range []string{"a.......", "b.......", "c......."} {
		if _, ok := found[want]; !ok {
			t.Errorf("%q was never found", want)
		}
	}
	if len(found) != 3 {
		t.Errorf("found %v", found)
	}
}

func TestLaterWriteCanSurviveWithoutTheEarlierOne(t *testing.T) {
	d := newDisk(t, Moment{}, DiskOptions{})
	put(t, d, 'a', 0, 1)
	put(t, d, 'b', 1, 1)
	if _, ok := outcomes(t, d)[".b......"]; !ok {
		t.Error("the cut never reordered two writes")
	}
}

func TestFlushCoversOnlyWhatWasAnsweredBeforeIt(t *testing.T) {
	d := newDisk(t, Moment{}, DiskOptions{})
	w, err := d.Write(fill('a', 1), 0, false)
	if err != nil {
		t.Fatal(err)
	}
	flush(t, d) // beside the write, not after it
	d.Answered(w)
	if found := outcomes(t, d); len(found) != 2 {
		t.Fatalf("a flush submitted beside the write covered it: %v", found)
	}
}

func TestForcedWriteIsDurableAndStaysOnTop(t *testing.T) {
	d := newDisk(t, Moment{}, DiskOptions{})
	put(t, d, 'a', 0, 3)
	if _, err := d.Write(fill('b', 1), SectorSize, true); err != nil {
		t.Fatal(err)
	}
	found := outcomes(t, d)
	for got := range found {
		if got[1] != 'b' {
			t.Errorf("an older unflushed write came back over a forced one: %q", got)
		}
	}
	if len(found) != 4 {
		t.Errorf("the older write's other sectors should be kept or not: %v", found)
	}
}

func TestFullCacheMakesTheOldestWritesDurable(t *testing.T) {
	d := newDisk(t, Moment{}, DiskOptions{CacheBytes: 2 * SectorSize})
	put(t, d, 'a', 0, 1)
	put(t, d, 'b', 1, 1)
	put(t, d, 'c', 2, 1)
	for got := range outcomes(t, d) {
		if got[0] != 'a' {
			t.Errorf("the oldest write was still volatile: %q", got)
		}
	}
}

func TestLyingDiskLosesWhatItConfirmed(t *testing.T) {
	d := newDisk(t, Moment{}, DiskOptions{Lies: true})
	put(t, d, 'a', 0, 1)
	flush(t, d)
	if _, err := d.Write(fill('b', 1), SectorSize, true); err != nil {
		t.Fatal(err)
	}
	if _, ok := outcomes(t, d)["........"]; !ok {
		t.Error("the lie cost nothing")
	}
}

func TestPowerGoesInTheMiddleOfTheChosenWrite(t *testing.T) {
	d := newDisk(t, Moment{Write: 2}, DiskOptions{})
	put(t, d, 'a', 0, 1)
	flush(t, d)
	if _, err := d.Write(fill('b', 2), SectorSize, false); !errors.Is(err, ErrPowerOff) {
		t.Fatalf("the second write was answered: %v", err)
	}
	<-d.supply.Off()
	if err := d.Read(make([]byte, 1), 0); !errors.Is(err, ErrPowerOff) {
		t.Errorf("read after the cut: %v", err)
	}
	if err := d.Flush(); !errors.Is(err, ErrPowerOff) {
		t.Errorf("flush after the cut: %v", err)
	}
	if found := outcomes(t, d); len(found) != 4 {
		t.Errorf("the write in flight is there, not, or torn: %v", found)
	}
}

func TestPowerGoesBeforeTheChosenFlushDoesAnything(t *testing.T) {
	d := newDisk(t, Moment{Flush: 1}, DiskOptions{})
	put(t, d, 'a', 0, 1)
	if err := d.Flush(); !errors.Is(err, ErrPowerOff) {
		t.Fatalf("the flush was answered: %v", err)
	}
	if found := outcomes(t, d); len(found) != 2 {
		t.Errorf("the unflushed write is there or not: %v", found)
	}
}

func TestOneCutStopsAllDisksOfTheSupply(t *testing.T) {
	s := NewSupply(Moment{Write: 1})
	var disks [2]*Disk
	for i := range disks {
		d, err := NewDisk(s, nil, DiskOptions{Size: SectorSize})
		if err != nil {
			t.Fatal(err)
		}
		disks[i] = d
	}
	if _, err := disks[0].Write(fill('a', 1), 0, false); !errors.Is(err, ErrPowerOff) {
		t.Fatal(err)
	}
	if _, err := disks[1].Write(fill('a', 1), 0, false); !errors.Is(err, ErrPowerOff) {
		t.Error("the other disk went on")
	}
	if _, damage := disks[1].AfterCut(rand.New(rand.NewPCG(1, 1))); damage.Unflushed != 0 {
		t.Error("a write after the cut got into the cache")
	}
}

func TestDiskRefusesWhatIsNotInsideIt(t *testing.T) {
	d := newDisk(t, Moment{}, DiskOptions{})
	const end = testSectors * SectorSize
	for _, c := range []struct {
		off int64
		n   int
	}{{-SectorSize, 512}, {0, 0}, {end, 512}, {end - 512, 1024}, {1, 512}, {0, 511}, {1 << 62, 512}} {
		if _, err := d.Write(make([]byte, c.n), c.off, false); !errors.Is(err, errRange) {
			t.Errorf("write of %d at %d: %v", c.n, c.off, err)
		}
	}
	if err := d.Read(make([]byte, 2), end-1); !errors.Is(err, errRange) {
		t.Errorf("read over the end: %v", err)
	}
	if _, err := NewDisk(NewSupply(Moment{}), nil, DiskOptions{Size: 100}); err == nil {
		t.Error("a disk of 100 bytes was made")
	}
}

// sectorModel knows, for one sector, the versions that may be found after a cut:
// the base, and those that no flush has covered. It shares nothing with Disk.
type sectorModel struct {
	versions []byte
	answered []bool
}

func (m *sectorModel) settle(chosen func(i int) bool) {
	for i := len(m.versions) - 1; i > 0; i-- {
		if chosen(i) {
			m.versions, m.answered = m.versions[i:], m.answered[i:]
			m.answered[0] = true
			return
		}
	}
}

func TestDiskAgainstSectorModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d, err := NewDisk(NewSupply(Moment{}), nil, DiskOptions{Size: testSectors * SectorSize})
		if err != nil {
			t.Fatal(err)
		}
		model := make([]sectorModel, testSectors)
		for i := range model {
			model[i] = sectorModel{versions: []byte{0}, answered: []bool{true}}
		}
		type flight struct {
			w        *Write
			from, to int
			version  byte
		}
		var open []flight
		next := byte(0)
		t.Repeat(map[string]func(*rapid.T){
			"write": func(t *rapid.T) {
				if next == 250 {
					t.Skip("out of bytes")
				}
				next++
				from := rapid.IntRange(0, testSectors-1).Draw(t, "from")
				to := rapid.IntRange(from+1, testSectors).Draw(t, "to")
				fua := rapid.IntRange(0, 4).Draw(t, "fua") == 0
				w, err := d.Write(fill(next, to-from), int64(from)*SectorSize, fua)
				if err != nil {
					t.Fatal(err)
				}
				for i := from; i < to; i++ {
					m := &model[i]
					m.versions, m.answered = append(m.versions, next), append(m.answered, false)
					if fua {
						last := len(m.versions) - 1
						m.settle(func(i int) bool { return i == last })
					}
				}
				open = append(open, flight{w, from, to, next})
			},
			"answer": func(t *rapid.T) {
				if len(open) == 0 {
					t.Skip("nothing in flight")
				}
				i := rapid.IntRange(0, len(open)-1).Draw(t, "which")
				f := open[i]
				open = append(open[:i], open[i+1:]...)
				d.Answered(f.w)
				for s := f.from; s < f.to; s++ {
					if at := bytes.IndexByte(model[s].versions, f.version); at >= 0 {
						model[s].answered[at] = true
					}
				}
			},
			"flush": func(t *rapid.T) {
				if err := d.Flush(); err != nil {
					t.Fatal(err)
				}
				for i := range model {
					m := &model[i]
					m.settle(func(i int) bool { return m.answered[i] })
				}
			},
			"": func(t *rapid.T) {
				got := make([]byte, testSectors*SectorSize)
				if err := d.Read(got, 0); err != nil {
					t.Fatal(err)
				}
				image, _ := d.AfterCut(rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "cut"), 0)))
				for i, m := range model {
					if v := got[i*SectorSize]; v != m.versions[len(m.versions)-1] {
						t.Fatalf("sector %d reads %d, last written %d", i, v, m.versions[len(m.versions)-1])
					}
					if v := image[i*SectorSize]; !bytes.Contains(m.versions, []byte{v}) {
						t.Fatalf("sector %d is %d after the cut, which may be one of %v", i, v, m.versions)
					}
				}
			},
		})
	})
}
