package guest

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
)

const testBlock = 512

// memory is a medium that can be cut: it keeps what was written since the last
// flush apart.
type memory struct {
	mu      sync.Mutex
	durable []byte
	pending map[int64][]byte // what no flush has covered
	flushes int
	onSync  func() error
	beside  chan struct{} // if set, a write is in flight until a flush is done
}

func newMemory(size int) *memory {
	return &memory{durable: make([]byte, size), pending: make(map[int64][]byte)}
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := copy(p, m.durable[off:])
	for at, b := range m.pending {
		if from := max(at, off); from < min(at+int64(len(b)), off+int64(n)) {
			copy(p[from-off:], b[from-at:])
		}
	}
	return n, nil
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if m.beside != nil {
		<-m.beside
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pending[off] = bytes.Clone(p)
	return len(p), nil
}

func (m *memory) Sync() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.flushes++
	if m.onSync != nil {
		if err := m.onSync(); err != nil {
			return err
		}
	}
	for at, b := range m.pending {
		copy(m.durable[at:], b)
	}
	clear(m.pending)
	if m.beside != nil {
		close(m.beside)
	}
	return nil
}

func (m *memory) cut()         { clear(m.pending) }
func (m *memory) Size() int64  { return int64(len(m.durable)) }
func (m *memory) Block() int   { return testBlock }
func (m *memory) Close() error { return nil }

// env is an environment with one device, whose acks go to acked.
func env(m *memory, life int, streams []Stream, acked *uint64) *Env {
	return &Env{
		Config: Config{Workload: "standin", Seed: 7, Life: life, Devices: 1, Streams: streams},
		Paths:  []string{"memory"},
		Open:   func(string) (Medium, error) { return m, nil },
		Ack:    func(_ int, n uint64) { *acked = n },
	}
}

// loadUntilFlush loads until the k-th flush fails, then cuts.
func loadUntilFlush(t *testing.T, w Workload, m *memory, e *Env, have []uint64, k int) {
	t.Helper()
	errOff := errors.New("the power is off")
	m.flushes = 0
	m.onSync = func() error {
		if m.flushes == k {
			return errOff
		}
		return nil
	}
	if err := w.Load(context.Background(), e, have); !errors.Is(err, errOff) {
		t.Fatalf("the load ended with %v", err)
	}
	m.onSync = nil
	m.cut()
}

func workload(t *testing.T, name string) Workload {
	t.Helper()
	w, err := New(name)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// An honest log, cut in two lives, has exactly what it acknowledged; its second
// life goes on after that.
func TestStandinKeepsWhatItAcknowledged(t *testing.T) {
	m, w := newMemory(4<<20), workload(t, "standin")
	var acked uint64
	stream := Stream{}
	for life := 1; life <= 3; life++ {
		e := env(m, life, []Stream{stream}, &acked)
		have, err := w.Verify(context.Background(), e)
		if err != nil {
			t.Fatal(err)
		}
		if have[0] != acked {
			t.Fatalf("life %d found %d records, %d were acknowledged", life, have[0], acked)
		}
		stream.Begin(life, have[0])
		e.Streams = []Stream{stream}
		loadUntilFlush(t, w, m, e, have, 5)
		if acked <= have[0] {
			t.Fatalf("life %d acknowledged nothing", life)
		}
		stream.Acked = acked
	}
}

// verdict is what the host would hear about a log of one life after a cut.
func verdict(t *testing.T, w Workload, m *memory, acked uint64) error {
	t.Helper()
	m.cut()
	known := []Stream{{Acked: acked, Lives: []Start{{1, 1}}}}
	have, err := w.Verify(context.Background(), env(m, 1, known, nil))
	if err != nil {
		t.Fatal(err)
	}
	return judge(known, have)
}

func TestAckBeforeTheFlushIsCaught(t *testing.T) {
	m, w := newMemory(4<<20), workload(t, "planted-early")
	var acked uint64
	loadUntilFlush(t, w, m, env(m, 1, nil, &acked), []uint64{0}, 3)
	if err := verdict(t, w, m, acked); !errors.Is(err, ErrLost) {
		t.Errorf("acknowledged %d, judged %v", acked, err)
	}
}

// The drive does the flush first and then the writes that were submitted beside it.
func TestFlushBesideTheWritesIsCaught(t *testing.T) {
	m, w := newMemory(4<<20), workload(t, "planted-beside")
	m.beside = make(chan struct{})
	var acked uint64
	e := env(m, 1, nil, nil)
	ctx, stop := context.WithCancel(context.Background())
	e.Ack = func(_ int, n uint64) { acked = n; stop() }
	if err := w.Load(ctx, e, []uint64{0}); err != nil {
		t.Fatal(err)
	}
	if err := verdict(t, w, m, acked); !errors.Is(err, ErrLost) {
		t.Errorf("acknowledged %d, judged %v", acked, err)
	}
}

func TestLoadEndsWhenTheDeviceIsFull(t *testing.T) {
	m, w := newMemory(1<<20), workload(t, "standin")
	var acked uint64
	e := env(m, 1, nil, &acked)
	if err := w.Load(context.Background(), e, []uint64{0}); err != nil {
		t.Fatal(err)
	}
	e.Streams = []Stream{{Lives: []Start{{1, 1}}}}
	if have, err := w.Verify(context.Background(), e); err != nil || have[0] != acked || acked == 0 {
		t.Errorf("found %v, %v; acknowledged %d", have, err, acked)
	}
}

// A record of a life that recovery has cut off is a loss when it is believed: the
// host knows which life the number belongs to.
func TestStaleRecordIsNotTakenForANewOne(t *testing.T) {
	m, w := newMemory(1<<20), workload(t, "standin")
	first := encodeRecord(nil, testBlock, 7, 0, 1, 1)
	m.WriteAt(first, 0)
	m.WriteAt(encodeRecord(nil, testBlock, 7, 0, 2, 1), int64(len(first)))
	m.Sync()
	e := env(m, 2, []Stream{{Lives: []Start{{1, 1}, {2, 2}}}}, nil)
	if _, err := w.Verify(context.Background(), e); !errors.Is(err, ErrLost) {
		t.Errorf("record 2 of life 1 was taken for life 2's: %v", err)
	}
	// Behind a record of life 2, the scan itself knows it for stale.
	m.WriteAt(encodeRecord(nil, testBlock, 7, 0, 1, 2), 0)
	m.Sync()
	e.Streams = []Stream{{Lives: []Start{{2, 1}}}}
	if len(encodeRecord(nil, testBlock, 7, 0, 1, 2)) == len(first) {
		t.Fatal("choose a seed whose two lives give records of different lengths")
	}
	if have, err := w.Verify(context.Background(), e); err != nil || have[0] != 1 {
		t.Errorf("found %v, %v", have, err)
	}
}

func TestRecordByteForByte(t *testing.T) {
	const n, life, stream, seed = 0x0102030405060708, 0x11121314, 0x21, 0x3132333435363738
	b := encodeRecord(nil, testBlock, seed, stream, n, life)
	head := hex.EncodeToString(b[:recordHeader])
	want := "524c5047" + "496aae93" + "0807060504030201" + "14131211" + "21000000" + "3837363534333231" + "00020000" + "00000000"
	if head != want {
		t.Errorf("header %s, want %s", head, want)
	}
	if f, err := decodeRecord(b, testBlock, seed, stream); err != nil || f != (found{n, life, len(b)}) {
		t.Errorf("decoded %+v, %v", f, err)
	}
	for at := range b {
		b[at] ^= 0x10
		if _, err := decodeRecord(b, testBlock, seed, stream); err == nil {
			t.Fatalf("a flipped bit in byte %d was not seen", at)
		}
		b[at] ^= 0x10
	}
	for cut := range len(b) {
		if _, err := decodeRecord(b[:cut], testBlock, seed, stream); err == nil {
			t.Fatalf("%d bytes of %d passed", cut, len(b))
		}
	}
	if _, err := decodeRecord(b, testBlock, seed+1, stream); err == nil {
		t.Error("a record of another seed passed")
	}
}

func FuzzDecodeRecord(f *testing.F) {
	f.Add(encodeRecord(nil, testBlock, 7, 0, 1, 1))
	f.Add(make([]byte, testBlock))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, p []byte) {
		r, err := decodeRecord(p, testBlock, 7, 0)
		if err == nil && !bytes.Equal(p[:r.bytes], encodeRecord(nil, testBlock, 7, 0, r.n, r.life)) {
			t.Error("decoded what was never encoded")
		}
	})
}

// port is a serial port in memory.
type port struct {
	io.Reader
	mu  sync.Mutex
	out bytes.Buffer
}

func (p *port) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(b)
}

func (p *port) lines() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Split(strings.TrimSuffix(p.out.String(), "\n"), "\n")
}

// converse runs a guest against what a host says, and gives what the guest said.
func converse(t *testing.T, m *memory, host string) []string {
	t.Helper()
	p := &port{Reader: strings.NewReader(host)}
	l := NewLine(p)
	c, err := l.Open()
	if err != nil {
		t.Fatal(err)
	}
	e := env(m, 0, nil, nil)
	e.Config = c
	if err := errors.Join(Run(context.Background(), l, e), l.Close()); err != nil {
		t.Fatal(err)
	}
	return p.lines()
}

func TestConversations(t *testing.T) {
	full := newMemory(1 << 20)
	written := converse(t, full, `{"Workload":"standin","Phase":"load","Seed":7,"Life":1,"Devices":1}`+"\ngo\n")
	last := written[len(written)-2]
	if written[len(written)-1] == Full { // the last ack may come before or after
		last, written = written[len(written)-1], append(written[:len(written)-2], last)
	}
	if want := []string{Ready, "have 0 0", Verified, Loading}; !slices.Equal(written[:4], want) || last != Full || !strings.HasPrefix(written[len(written)-1], "ack 0 ") {
		t.Errorf("load: %q ... %q", written[:4], written[len(written)-1])
	}
	var n int
	fmt.Sscanf(written[len(written)-1], "ack 0 %d", &n)

	for _, c := range []struct{ name, config, want string }{
		{"format", `{"Workload":"standin","Phase":"format"}`, "ready|formatted"},
		{"verify", `{"Workload":"standin","Phase":"verify","Seed":7,"Streams":[{"Acked":1,"Lives":[{"Life":1,"From":1}]}]}`, fmt.Sprintf("ready|have 0 %d|verified", n)},
		{"loss", fmt.Sprintf(`{"Workload":"standin","Phase":"verify","Seed":7,"Streams":[{"Acked":%d,"Lives":[{"Life":1,"From":1}]}]}`, n+1),
			fmt.Sprintf("ready|lost guest: stream 0: acknowledged up to %d, whole up to %d: lost", n+1, n)},
		{"a stream gone", `{"Workload":"standin","Phase":"verify","Seed":7,"Streams":[{"Lives":[{"Life":1,"From":1}]},{}]}`, "ready|lost guest: stream 1 of 2 is gone: lost"},
		{"nonsense", `{"Workload":"tea"}`, `ready|broken guest: no workload "tea"`},
		{"no go", `{"Workload":"standin","Phase":"load","Seed":9}`, `ready|have 0 0|verified|broken guest: waiting for the host's go: EOF`},
	} {
		if got := strings.Join(converse(t, full, c.config+"\n"), "|"); got != c.want {
			t.Errorf("%s: %s\nwant %s", c.name, got, c.want)
		}
	}
}

func TestMessagesSurviveTheLine(t *testing.T) {
	for _, m := range []Message{
		{Verb: Ready}, {Verb: Verified}, {Verb: Full}, {Verb: Ack, Stream: 3, N: 1 << 63}, {Verb: Have, N: 1}, {Verb: Lost, Text: "a b"}, {Verb: Broken},
		{Verb: Seen, Text: "torn", N: 7},
	} {
		if got, err := ParseMessage(m.String() + "\r\n"); err != nil || got != m {
			t.Errorf("%q: %+v, %v", m, got, err)
		}
	}
	for _, bad := range []string{"", "ack", "ack 1", "ack 1 -1", "ack 70000 1", "ack 1 1 1", "readyy", "ready 1", "have x 1", "seen", "seen torn", "seen  1", "seen torn -1"} {
		if m, err := ParseMessage(bad); err == nil {
			t.Errorf("%q passed as %+v", bad, m)
		}
	}
}

func TestHistoryKnowsWhoWroteWhat(t *testing.T) {
	var s Stream
	s.Begin(1, 0)
	s.Begin(2, 10)
	s.Begin(3, 10) // life 2 left nothing behind
	s.Begin(4, 5)  // and life 1 lost what it had never acknowledged
	for n, want := range map[uint64]int{1: 1, 5: 1, 6: 4, 11: 4} {
		if got := s.LifeOf(n); got != want {
			t.Errorf("record %d is life %d's, want %d", n, got, want)
		}
	}
	if (Stream{}).LifeOf(1) != 0 {
		t.Error("somebody wrote a record before any life began")
	}
}
