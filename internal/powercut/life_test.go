package powercut

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-storage/redoubt/internal/powercut/guest"
)

// fake gives options whose machines are run by this binary.
func fake(t *testing.T, how string) LifeOptions {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(fakeVar, how)
	return LifeOptions{
		Machine:  MachineOptions{QEMU: self},
		Workload: "standin", Disks: 2, DiskSize: 8 << 20, MaxWrites: 60,
		Drain: 50 * time.Millisecond,
	}
}

func TestCampaignOfAnHonestProgramLosesNothing(t *testing.T) {
	var out bytes.Buffer
	c := &Campaign{Life: fake(t, "runs"), Seed: 3, Cuts: 8, Keep: t.TempDir(), Out: &out}
	if err := c.Run(context.Background()); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	if c.cuts < 8 || c.damage.SectorsLost == 0 {
		t.Errorf("the cuts were too kind: %d cuts, %v", c.cuts, c.damage)
	}
	if last := out.String(); !strings.Contains(last, "nothing lost") {
		t.Errorf("report: %s", last)
	}
}

func TestEveryPlantedBugIsCaught(t *testing.T) {
	for _, p := range Plants(fake(t, "runs")) {
		t.Run(p.Name, func(t *testing.T) {
			var out bytes.Buffer
			if err := p.Catch(context.Background(), 1, 40, &out); err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(out.String(), "acknowledged up to") {
				t.Errorf("report: %s", &out)
			}
		})
	}
}

func TestSoundProgramIsNotTakenForAPlantedBug(t *testing.T) {
	p := Plant{Name: "nothing", Life: fake(t, "runs")}
	if err := p.Catch(context.Background(), 1, 2, new(bytes.Buffer)); err == nil || !strings.Contains(err.Error(), "blind") {
		t.Errorf("caught a bug that is not there: %v", err)
	}
}

// A campaign on drives without a volatile cache would pass with any bug in it.
func TestCampaignWithoutDamageFails(t *testing.T) {
	c := &Campaign{Life: fake(t, "runs"), Out: new(bytes.Buffer), cuts: 2, Cuts: 2}
	if err := c.Run(context.Background()); err == nil || !strings.Contains(err.Error(), "blind") {
		t.Errorf("a campaign that took nothing away passed: %v", err)
	}
}

// Cuts in a load that never does what should be cut prove nothing either.
func TestCampaignThatMissesWhatItMustMeetFails(t *testing.T) {
	c := &Campaign{Must: []string{"torn", "trimmed"}, seen: map[string]uint64{"torn": 3}, cuts: MustCuts - 1, damage: Damage{SectorsLost: 1}}
	if err := c.proved(); err != nil {
		t.Errorf("a short campaign need not meet everything: %v", err)
	}
	c.cuts = MustCuts
	if err := c.proved(); err == nil || !strings.Contains(err.Error(), `"trimmed"`) {
		t.Errorf("nothing was ever trimmed, and the campaign passed: %v", err)
	}
	c.seen["trimmed"] = 1
	if err := c.proved(); err != nil {
		t.Error(err)
	}
}

// The workload of the real binary has a planted bug of its own.
func TestNodeHasAPlantedTwin(t *testing.T) {
	plants := Plants(LifeOptions{Workload: "node"})
	last := plants[len(plants)-1].Life.Workload
	if len(plants) != 4 || last == "node" {
		t.Fatalf("plants %v", plants)
	}
	for _, p := range plants {
		if _, err := guest.New(p.Life.Workload); err != nil {
			t.Errorf("%s: %v", p.Name, err)
		}
	}
}

// What a failure leaves behind is enough to reach the verdict again, every time.
func TestFailureIsReplayedFromItsDirectory(t *testing.T) {
	o := fake(t, "runs")
	o.Lies = true
	c := &Campaign{Life: o, Seed: 1, Cuts: 40, Keep: t.TempDir(), Out: new(bytes.Buffer)}
	err := c.Run(context.Background())
	var f *Failure
	if !errors.As(err, &f) || !errors.Is(err, guest.ErrLost) {
		t.Fatalf("the lying drive was not caught: %v", err)
	}
	dir := filepath.Join(c.Keep, "failed-standin-"+strconv.FormatUint(f.Seed, 10))
	if !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "this is the console") {
		t.Errorf("the error does not say where to look: %v", err)
	}
	for range 2 {
		again, err := LoadFailure(dir)
		if err != nil {
			t.Fatal(err)
		}
		var g *Failure
		if err := again.Replay(LifeOptions{Machine: o.Machine}).Verify(context.Background()); !errors.As(err, &g) || g.Text != f.Text {
			t.Fatalf("the replay gives %v, it was %v", err, f)
		}
	}
}

func TestTroubleWithTheEmulatorIsNoVerdict(t *testing.T) {
	for how, words := range map[string]string{
		"dies":    "no such processor",
		"hangs":   "no \"formatted\" within",
		"babbles": "fell silent",
	} {
		t.Run(how, func(t *testing.T) {
			o := fake(t, how)
			if how == "hangs" {
				o.BootTime = 300 * time.Millisecond
			}
			_, err := Format(context.Background(), o)
			var f *Failure
			if errors.Is(err, guest.ErrLost) || err == nil {
				t.Fatalf("judged: %v", err)
			}
			text := err.Error()
			if errors.As(err, &f) {
				text += f.Console
			}
			if !strings.Contains(text, words) {
				t.Errorf("%q does not say %q", text, words)
			}
		})
	}
}

// A cut must not hide a load that never moves.
func TestLoadThatStandsStillIsAFailure(t *testing.T) {
	o := fake(t, "stalls")
	o.LoadTime = 200 * time.Millisecond
	c := &Campaign{Life: o, Seed: 1, Cuts: 1, Out: new(bytes.Buffer)}
	if err := c.Run(context.Background()); errors.Is(err, guest.ErrLost) || err == nil || !strings.Contains(err.Error(), "stands still") {
		t.Errorf("a load that stands still: %v", err)
	}
}

func TestMissingEmulatorIsAnError(t *testing.T) {
	if _, err := Format(context.Background(), LifeOptions{Machine: MachineOptions{QEMU: "/does/not/exist"}}); err == nil {
		t.Error("formatted on a machine that is not there")
	}
}

// Read back with nothing but the format's description.
func TestInitrdHoldsItsFiles(t *testing.T) {
	dir := t.TempDir()
	source := filepath.Join(dir, "program")
	if err := os.WriteFile(source, []byte("#!five"), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "initrd")
	if err := WriteInitrd(path, []InitrdFile{{Name: "init", Path: source}}); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for len(b) > 0 {
		field := func(i int) int {
			v, err := strconv.ParseUint(string(b[6+8*i:14+8*i]), 16, 32)
			if err != nil || string(b[:6]) != "070701" {
				t.Fatalf("entry %d: %q", len(names), b[:110])
			}
			return int(v)
		}
		mode, size, name := field(1), field(6), string(b[110:110+field(11)-1])
		body := (110 + field(11) + 3) &^ 3
		if name == "init" && (mode != 0o100755 || string(b[body:body+size]) != "#!five") {
			t.Errorf("init: mode %o, %q", mode, b[body:body+size])
		}
		if name == "dev/console" && (mode != 0o020600 || field(9) != 5 || field(10) != 1) {
			t.Errorf("console: mode %o, device %d:%d", mode, field(9), field(10))
		}
		names = append(names, name)
		b = b[(body+size+3)&^3:]
	}
	if got := strings.Join(names, " "); got != "dev dev/console init TRAILER!!!" {
		t.Errorf("entries: %s", got)
	}
	if err := WriteInitrd(path, []InitrdFile{{Name: "init", Path: dir + "/nothing"}}); err == nil {
		t.Error("wrote a file that is not there")
	}
}

func TestSavedImagesAreWhole(t *testing.T) {
	image := make([]byte, 1<<20+SectorSize)
	binary.LittleEndian.PutUint64(image[700<<10:], 1)
	image[len(image)-1] = 1
	path := filepath.Join(t.TempDir(), "image")
	if err := writeSparse(path, image); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, image) {
		t.Errorf("read back %d bytes, %v", len(got), err)
	}
}
