package bench

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/peer"
)

// A story is a trace and the node that it is replayed into.
type story struct {
	t     *testing.T
	trace *traceBuilder
	o     ReplayOptions
}

func newStory(t *testing.T, addr string, pages uint64, commits int) *story {
	b := syntheticTrace(pages, commits, 11)
	return &story{t: t, trace: b, o: ReplayOptions{Node: addr, Trace: opener(t, b.end()), PGSize: 16 << 20, Window: 32 << 10, LAL: 20_000}}
}

// check holds that the result is that of the whole trace.
func (s *story) check(r ReplayResult) {
	s.t.Helper()
	sum := s.trace.sum()
	want := hex.EncodeToString(sum[:])
	if !r.Match || r.SHA256 != want || r.Records != s.trace.records || r.Commits != s.trace.commits || r.AckedLSN == 0 || r.Pages != uint64(len(s.trace.volume)) {
		s.t.Fatalf("%+v; want %d records, %d commits, %s", r, s.trace.records, s.trace.commits, want)
	}
}

func (s *story) replay(change func(*ReplayOptions)) ReplayResult {
	s.t.Helper()
	o := s.o
	if change != nil {
		change(&o)
	}
	r, err := RunReplay(s.t.Context(), o)
	if err != nil {
		s.t.Fatal(err)
	}
	s.check(r)
	return r
}

func TestReplay(t *testing.T) {
	r := newRig(t, 3)
	s := newStory(t, r.addr, 2500, 300) // three groups, the control page in the third
	var last ReplayState
	res := s.replay(func(o *ReplayOptions) {
		o.Settle = true
		o.Moved = func(now ReplayState) {
			if now.VDL <= last.VDL || now.Durable < last.Durable || now.Total != s.trace.records {
				t.Errorf("%+v after %+v", now, last)
			}
			last = now
		}
	})
	if last.Durable != s.trace.records || uint64(last.VDL) != res.AckedLSN {
		t.Fatalf("the last state was %+v, the result %+v", last, res)
	}
	// Each mini-transaction has one record more, for the control page; so has
	// what stands behind the last COMMIT.
	if res.AckedLSN != s.trace.records+s.trace.commits+1 || res.Sent != s.trace.records || res.ResumedFrom != 0 || res.Retries != 0 {
		t.Fatalf("%+v", res)
	}
	if res.RecordsPerS <= 0 || res.CommitsPerS <= 0 || res.CommitP50us <= 0 || res.CommitP50us > res.CommitP99us {
		t.Fatalf("%+v", res)
	}

	t.Run("read again", func(t *testing.T) {
		again := s.replay(func(o *ReplayOptions) { o.VerifyOnly = true })
		if again.Sent != 0 || again.AckedLSN != res.AckedLSN {
			t.Fatalf("%+v", again)
		}
	})
	t.Run("replayed again, there is nothing to do", func(t *testing.T) {
		again := s.replay(nil)
		if again.Sent != 0 || again.ResumedFrom != res.AckedLSN {
			t.Fatalf("%+v", again)
		}
	})
	t.Run("under another name it is another volume", func(t *testing.T) {
		if other := s.replay(func(o *ReplayOptions) { o.Volume = "other" }); other.Sent != s.trace.records {
			t.Fatalf("%+v", other)
		}
	})
}

// TestAVolumeWhosePagesFillItsGroups has the control page in a group of its own.
func TestAVolumeWhosePagesFillItsGroups(t *testing.T) {
	r := newRig(t, 1)
	newStory(t, r.addr, 2048, 40).replay(nil)
	if n := r.segments(); n != 3 {
		t.Fatalf("%d segments", n)
	}
}

// TestReplayIsResumed cuts the replay short at several places, each time in
// another process as it were, and goes on: the volume says where.
func TestReplayIsResumed(t *testing.T) {
	r := newRig(t, 2)
	s := newStory(t, r.addr, 1500, 400)
	var vdl redoubt.LSN
	for _, part := range []uint64{0, 20, 45, 45, 70} {
		ctx, cancel := context.WithCancel(t.Context())
		o := s.o
		cut := false
		o.Moved = func(now ReplayState) {
			if now.Durable*100 >= now.Total*part {
				vdl, cut = now.VDL, true
				cancel()
			}
		}
		if part == 45 {
			// The node, too, starts anew.
			r.close()
			r.open()
		}
		if _, err := RunReplay(ctx, o); err == nil || !errors.Is(err, context.Canceled) {
			t.Fatalf("cut at %d %%: %v", part, err)
		}
		if !cut {
			t.Fatalf("the replay was never cut at %d %%", part)
		}
		cancel()
	}
	res := s.replay(nil)
	if res.ResumedFrom < uint64(vdl) || res.Sent == 0 || res.Sent >= s.trace.records {
		t.Fatalf("%+v; VDL %d was acknowledged", res, vdl)
	}
}

// TestReplayOutlivesTheNode kills the node, a process of its own, again and
// again while the trace is replayed; the replay connects again and sends what
// had no ack.
func TestReplayOutlivesTheNode(t *testing.T) {
	devices := newDevices(t, 2)
	n := startChild(t, devices)
	s := newStory(t, n.addr, 1500, 600)
	kills := 0
	back := make(chan error, 16)
	res := s.replay(func(o *ReplayOptions) {
		o.Settle = true
		o.Progress = NewProgress(io.Discard, "replay")
		o.Moved = func(now ReplayState) {
			if kills < 3 && now.Durable*4 >= now.Total*uint64(kills+1) {
				kills++
				n.kill()
				go func() {
					_, err := n.start(context.Background())
					back <- err
				}()
			}
		}
	})
	if kills != 3 || res.Retries < 3 {
		t.Fatalf("%d kills, %+v", kills, res)
	}
	for range kills {
		if err := <-back; err != nil {
			t.Fatal(err)
		}
	}
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	if err := checkMain(devices); err != nil {
		t.Fatal(err)
	}
}

// startChild starts this binary as a node.
func startChild(t *testing.T, devices []string) *childNode {
	t.Helper()
	n, err := newChildNode(testBinary(t), devices, rigMemory, filepath.Join(t.TempDir(), "node.log"), "-coalesce-age", rigMaxAge.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.end)
	if _, err := n.start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestReplayGivesUp when the node stays away.
func TestReplayGivesUp(t *testing.T) {
	r := newRig(t, 1)
	s := newStory(t, r.addr, 100, 300)
	s.o.Retry = 50 * time.Millisecond
	gone := false
	s.o.Moved = func(ReplayState) {
		if !gone {
			gone = true
			r.Node.Close(canceled())
			r.Node = nil
		}
	}
	if _, err := RunReplay(t.Context(), s.o); !errors.Is(err, redoubt.ErrClosed) && !strings.Contains(err.Error(), "connection refused") {
		t.Fatalf("%v", err)
	}
}

// canceled returns a context that is done: whoever waits for clients under it
// doesn't.
func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// TestASecondWriterFencesTheFirst opens the volume anew while a replay is on: the
// first stops, and says why.
func TestASecondWriterFencesTheFirst(t *testing.T) {
	r := newRig(t, 1)
	s := newStory(t, r.addr, 800, 400)
	var second ReplayResult
	first := s.o
	opened := false
	first.Moved = func(now ReplayState) {
		if !opened && now.Durable*3 >= now.Total {
			opened = true
			second = s.replay(nil)
		}
	}
	_, err := RunReplay(t.Context(), first)
	if !opened {
		t.Fatal("the second never came")
	}
	if !errors.Is(err, redoubt.ErrFenced) {
		t.Fatalf("the first ended with %v", err)
	}
	if second.ResumedFrom == 0 {
		t.Fatalf("%+v", second)
	}
}

// TestAVolumeThatIsNotTheTrace is found: by the hash in END, and by what a
// replay with another trace of the same name finds.
func TestAVolumeThatIsNotTheTrace(t *testing.T) {
	r := newRig(t, 1)
	b := syntheticTrace(100, 20, 3)
	raw := b.end()
	raw[len(raw)-1] ^= 1
	res, err := RunReplay(t.Context(), ReplayOptions{Node: r.addr, Trace: opener(t, raw), PGSize: 16 << 20})
	if !errors.Is(err, ErrMismatch) || res.Match || res.SHA256 == res.Want {
		t.Fatalf("%v, %+v", err, res)
	}
	short := syntheticTrace(100, 3, 3)
	if _, err := RunReplay(t.Context(), ReplayOptions{Node: r.addr, Trace: opener(t, short.end()), PGSize: 16 << 20}); !errors.Is(err, redoubt.ErrInvalid) {
		t.Fatalf("a shorter trace of the same name: %v", err)
	}
}

// TestWhatReplayRefuses holds that nothing is sent for a trace or options that
// are not sound, and that a volume with a segment missing is not filled up.
func TestWhatReplayRefuses(t *testing.T) {
	r := newRig(t, 1)
	s := newStory(t, r.addr, 1500, 20)
	for name, change := range map[string]func(*ReplayOptions){
		"no node":       func(o *ReplayOptions) { o.Node = "" },
		"no trace":      func(o *ReplayOptions) { o.Trace = nil },
		"rate":          func(o *ReplayOptions) { o.Rate = -1 },
		"LAL":           func(o *ReplayOptions) { o.LAL = 1 },
		"window":        func(o *ReplayOptions) { o.Window = -1 },
		"PG size":       func(o *ReplayOptions) { o.PGSize = 100 },
		"garbage":       func(o *ReplayOptions) { o.Trace = opener(t, []byte("garbage")) },
		"cut":           func(o *ReplayOptions) { o.Trace = opener(t, s.trace.buf[:len(s.trace.buf)-60]) },
		"no such trace": func(o *ReplayOptions) { o.Trace, _ = TraceFile(filepath.Join(t.TempDir(), "none")) },
	} {
		o := s.o
		change(&o)
		if _, err := RunReplay(t.Context(), o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if n := r.segments(); n != 0 {
		t.Fatalf("%d segments were made", n)
	}
	o := s.o
	o.VerifyOnly = true
	if _, err := RunReplay(t.Context(), o); !errors.Is(err, redoubt.ErrNotFound) {
		t.Fatalf("verifying a volume that isn't there: %v", err)
	}
	s.replay(nil)
	l, err := newLayout("replay", 1500, 16<<20)
	if err != nil {
		t.Fatal(err)
	}
	c, err := peer.Dial(t.Context(), r.addr, peer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	half := l
	half.pgs = 1
	if n, err := deleteVolume(t.Context(), c, &half); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if _, err := RunReplay(t.Context(), s.o); !errors.Is(err, redoubt.ErrNotFound) || !strings.Contains(err.Error(), "1 of its 2 segments") {
		t.Fatalf("a volume that lost a segment: %v", err)
	}
}

// TestALargeTransactionNeedsLAL stops with advice instead of waiting for ever.
func TestALargeTransactionNeedsLAL(t *testing.T) {
	r := newRig(t, 1)
	b := newTraceBuilder(10)
	for i := range 1500 {
		b.write(uint64(i%10), 0, []byte{byte(i)})
	}
	b.commit()
	o := ReplayOptions{Node: r.addr, Trace: opener(t, b.end()), PGSize: 16 << 20, LAL: 1000}
	if _, err := RunReplay(t.Context(), o); !errors.Is(err, redoubt.ErrInvalid) || !strings.Contains(err.Error(), "-lal") {
		t.Fatalf("%v", err)
	}
	o.LAL = 2000
	if res, err := RunReplay(t.Context(), o); err != nil || !res.Match {
		t.Fatalf("%+v, %v", res, err)
	}
}

func TestTraceFileNamesTheVolume(t *testing.T) {
	for path, want := range map[string]string{"/a/pgbench.trace.gz": "pgbench", "x.gz": "x", "y.trace": "y", "z": "z", ".gz": ".gz"} {
		if _, name := TraceFile(path); name != want {
			t.Errorf("%s: %q, want %q", path, name, want)
		}
	}
}

// The names of the fields are part of the command line's promise.
func TestReplayResultKeepsItsFieldNames(t *testing.T) {
	b, err := json.Marshal(ReplayResult{})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"records", "commits", "records_per_s", "commits_per_s", "pages", "sha256", "match", "acked_lsn"} {
		if !bytes.Contains(b, []byte(`"`+f+`":`)) {
			t.Errorf("no field %s in %s", f, b)
		}
	}
}
