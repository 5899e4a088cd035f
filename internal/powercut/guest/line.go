package guest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
)

// The verbs of the line.
const (
	Ready     = "ready"
	Ack       = "ack"
	Have      = "have"
	Seen      = "seen"
	Verified  = "verified"
	Loading   = "loading"
	Full      = "full"
	Formatted = "formatted"
	Lost      = "lost"
	Broken    = "broken"

	GoOn = "go" // the host's answer to verified, before a load
)

// SerialPrefix stands before a drive's number in its serial number.
const SerialPrefix = "redoubt"

// The phases of a boot.
const (
	PhaseFormat = "format" // make blank devices usable
	PhaseLoad   = "load"   // verify, then write until the power goes
	PhaseVerify = "verify" // verify only
)

// A Config is what the host tells the guest.
type Config struct {
	Workload string
	Phase    string
	Seed     uint64
	Life     int      // counts the boots with load, from 1
	Devices  int      // how many drives to wait for
	Streams  []Stream // what the host knows; empty before the first load
	Args     []string `json:",omitempty"` // for the workload
}

// A Stream is the host's knowledge of one stream: the oracle.
type Stream struct {
	Acked uint64 // every record up to here must be there
	Lives []Start
}

// A Start says that a life wrote the records from From on, unless a later one did.
type Start struct {
	Life int
	From uint64
}

// LifeOf gives the life that wrote record n, or 0 if nobody can have.
func (s Stream) LifeOf(n uint64) int {
	life := 0
	for _, start := range s.Lives {
		if n >= start.From {
			life = start.Life
		}
	}
	return life
}

// Begin notes that a life goes on after record have. What an earlier life wrote
// past it is void.
func (s *Stream) Begin(life int, have uint64) {
	for len(s.Lives) > 0 && s.Lives[len(s.Lives)-1].From > have {
		s.Lives = s.Lives[:len(s.Lives)-1]
	}
	s.Lives = append(s.Lives, Start{Life: life, From: have + 1})
}

// A Message is one line from the guest.
type Message struct {
	Verb   string
	Stream int    // of ack and have
	N      uint64 // of ack, have and seen
	Text   string // of lost, broken and seen
}

func (m Message) String() string {
	switch m.Verb {
	case Ack, Have:
		return fmt.Sprintf("%s %d %d", m.Verb, m.Stream, m.N)
	case Seen:
		return fmt.Sprintf("%s %s %d", m.Verb, m.Text, m.N)
	case Lost, Broken:
		return m.Verb + " " + strings.ReplaceAll(m.Text, "\n", "; ")
	}
	return m.Verb
}

// ParseMessage reads what String prints.
func ParseMessage(line string) (Message, error) {
	verb, rest, _ := strings.Cut(strings.TrimRight(line, "\r\n"), " ")
	m := Message{Verb: verb}
	switch verb {
	case Ready, Verified, Loading, Full, Formatted:
		if rest == "" {
			return m, nil
		}
	case Lost, Broken:
		m.Text = rest
		return m, nil
	case Seen:
		what, n, _ := strings.Cut(rest, " ")
		if v, err := strconv.ParseUint(n, 10, 64); err == nil && what != "" {
			m.Text, m.N = what, v
			return m, nil
		}
	case Ack, Have:
		stream, n, _ := strings.Cut(rest, " ")
		i, err1 := strconv.ParseUint(stream, 10, 16)
		v, err2 := strconv.ParseUint(n, 10, 64)
		if err := errors.Join(err1, err2); err == nil {
			m.Stream, m.N = int(i), v
			return m, nil
		}
	}
	return Message{}, fmt.Errorf("guest: not a line of ours: %q", line)
}

// A Line is the guest's end of the serial line. Acks are gathered: a line in
// progress delays none of the load, and the next one tells the newest state.
type Line struct {
	in      *bufio.Reader
	stopped chan struct{} // closed when the writer of acks has stopped

	write sync.Mutex // guards what follows; held while a line goes out
	out   io.Writer
	err   error // the first one sticks

	mu     sync.Mutex // guards what follows
	acked  []uint64   // by stream, as last told to Ack
	dirty  []bool     // by stream: not written yet
	wake   sync.Cond
	closed bool
}

// NewLine takes the serial port over and starts its writer of acks, which Close
// stops.
func NewLine(port io.ReadWriter) *Line {
	l := &Line{in: bufio.NewReader(port), out: port, stopped: make(chan struct{})}
	l.wake.L = &l.mu
	go l.writeAcks()
	return l
}

// Open says that the guest is ready and reads what to do.
func (l *Line) Open() (Config, error) {
	var c Config
	if err := l.Say(Message{Verb: Ready}); err != nil {
		return c, err
	}
	text, err := l.in.ReadBytes('\n')
	if err != nil {
		return c, fmt.Errorf("guest: no configuration: %w", err)
	}
	if err := json.Unmarshal(text, &c); err != nil {
		return c, fmt.Errorf("guest: configuration %q: %w", text, err)
	}
	return c, nil
}

// AwaitGo waits until the host has noted where the streams stand.
func (l *Line) AwaitGo() error {
	text, err := l.in.ReadString('\n')
	if err != nil {
		return fmt.Errorf("guest: waiting for the host's go: %w", err)
	}
	if strings.TrimSpace(text) != GoOn {
		return fmt.Errorf("guest: the host said %q instead of %q", text, GoOn)
	}
	return nil
}

// Say writes one line and returns when it is out.
func (l *Line) Say(m Message) error {
	l.write.Lock()
	defer l.write.Unlock()
	if l.err == nil {
		_, l.err = io.WriteString(l.out, m.String()+"\n")
	}
	return l.err
}

// Ack tells the host, soon, that the stream's records up to n were acknowledged.
// It does not wait, so it may be called from where acks come in.
func (l *Line) Ack(stream int, n uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.acked) <= stream {
		l.acked, l.dirty = append(l.acked, 0), append(l.dirty, false)
	}
	if n > l.acked[stream] {
		l.acked[stream], l.dirty[stream] = n, true
		l.wake.Signal()
	}
}

// Close writes the acks that are still to be told and stops the writer of acks.
// It leaves the port open.
func (l *Line) Close() error {
	l.mu.Lock()
	l.closed = true
	l.wake.Signal()
	l.mu.Unlock()
	<-l.stopped
	l.write.Lock()
	defer l.write.Unlock()
	return l.err
}

func (l *Line) writeAcks() {
	defer close(l.stopped)
	for {
		news := l.takeAcks()
		if news == nil {
			return
		}
		for _, m := range news {
			if l.Say(m) != nil {
				return // Close tells
			}
		}
	}
}

// takeAcks waits for acks to tell; nil once the line is closed and there are none.
func (l *Line) takeAcks() []Message {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		var news []Message
		for stream, dirty := range l.dirty {
			if dirty {
				news = append(news, Message{Verb: Ack, Stream: stream, N: l.acked[stream]})
				l.dirty[stream] = false
			}
		}
		if news != nil || l.closed {
			return news
		}
		l.wake.Wait()
	}
}
