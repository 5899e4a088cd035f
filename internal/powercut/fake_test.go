package powercut

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/redoubt-storage/redoubt/internal/powercut/guest"
)

// The whole machine is tested without an emulator: this test binary, started under
// its name, connects to the same sockets and runs the same workloads over NBD.

const fakeVar = "POWERCUT_FAKE_GUEST"

func TestMain(m *testing.M) {
	if how := os.Getenv(fakeVar); how != "" {
		if err := fakeEmulator(how, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, "fake emulator:", err)
			os.Exit(3)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// fakeEmulator does what a guest does that has booted from the given command line.
func fakeEmulator(how string, args []string) error {
	fmt.Println("this is the console")
	if how == "dies" {
		return errors.New("no such processor")
	}
	var line net.Conn
	e := &guest.Env{Logf: func(string, ...any) {}}
	drives := make(map[string]guest.Medium)
	for _, arg := range args {
		for field := range strings.SplitSeq(arg, ",") {
			path, ok := strings.CutPrefix(field, "server.path=")
			if ok {
				m, err := dialMedium(path)
				if err != nil {
					return err
				}
				drives[path] = m
				e.Paths = append(e.Paths, path)
			}
			if path, ok = strings.CutPrefix(field, "path="); ok {
				var err error
				if line, err = net.Dial("unix", path); err != nil {
					return err
				}
			}
		}
	}
	if how == "babbles" {
		_, err := io.WriteString(line, "what a fine day\n")
		return err
	}
	l := guest.NewLine(line)
	c, err := l.Open()
	if err != nil {
		return err
	}
	if how == "hangs" {
		select {}
	}
	if how == "stalls" && c.Phase == guest.PhaseLoad {
		if err := l.Say(guest.Message{Verb: guest.Verified}); err != nil {
			return err
		}
		select {}
	}
	e.Config = c
	e.Open = func(path string) (guest.Medium, error) { return drives[path], nil }
	if err := guest.Run(context.Background(), l, e); err != nil {
		return err
	}
	select {} // like process 1
}

// A nbdMedium is a drive as a guest sees it, any number of requests at a time.
type nbdMedium struct {
	conn net.Conn
	size int64

	mu      sync.Mutex
	cookie  uint64
	waiting map[uint64]chan uint32 // by cookie: gets the error
	reads   map[uint64][]byte
}

func dialMedium(path string) (*nbdMedium, error) {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return nil, err
	}
	m := &nbdMedium{conn: conn, waiting: make(map[uint64]chan uint32), reads: make(map[uint64][]byte)}
	head := make([]byte, 28)
	if _, err := io.ReadFull(conn, head[:18]); err != nil {
		return nil, err
	}
	hello := binary.BigEndian.AppendUint32(nil, flagFixed|flagNoZeroes)
	hello = binary.BigEndian.AppendUint64(hello, optMagic)
	hello = append(hello, 0, 0, 0, optExportName, 0, 0, 0, 0)
	if _, err := conn.Write(hello); err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(conn, head[:10]); err != nil {
		return nil, err
	}
	m.size = int64(binary.BigEndian.Uint64(head))
	go m.receive()
	return m, nil
}

func (m *nbdMedium) receive() {
	head := make([]byte, 16)
	for {
		if _, err := io.ReadFull(m.conn, head); err != nil {
			return
		}
		cookie := binary.BigEndian.Uint64(head[8:])
		m.mu.Lock()
		done, p := m.waiting[cookie], m.reads[cookie]
		delete(m.waiting, cookie)
		delete(m.reads, cookie)
		m.mu.Unlock()
		code := binary.BigEndian.Uint32(head[4:])
		if code == 0 {
			if _, err := io.ReadFull(m.conn, p); err != nil {
				return
			}
		}
		done <- code
	}
}

func (m *nbdMedium) ask(kind uint16, off int64, n int, data, into []byte) error {
	done := make(chan uint32, 1)
	m.mu.Lock()
	m.cookie++
	m.waiting[m.cookie], m.reads[m.cookie] = done, into
	b := binary.BigEndian.AppendUint32(nil, requestMagic)
	b = binary.BigEndian.AppendUint32(b, uint32(kind))
	b = binary.BigEndian.AppendUint64(b, m.cookie)
	b = binary.BigEndian.AppendUint64(b, uint64(off))
	b = binary.BigEndian.AppendUint32(b, uint32(n))
	_, err := m.conn.Write(append(b, data...))
	m.mu.Unlock()
	if err != nil {
		return err
	}
	if code := <-done; code != 0 {
		return fmt.Errorf("the drive answers with error %d", code)
	}
	return nil
}

func (m *nbdMedium) ReadAt(p []byte, off int64) (int, error) {
	return len(p), m.ask(cmdRead, off, len(p), nil, p)
}

func (m *nbdMedium) WriteAt(p []byte, off int64) (int, error) {
	return len(p), m.ask(cmdWrite, off, len(p), bytes.Clone(p), nil)
}

func (m *nbdMedium) Sync() error  { return m.ask(cmdFlush, 0, 0, nil, nil) }
func (m *nbdMedium) Size() int64  { return m.size }
func (m *nbdMedium) Block() int   { return SectorSize }
func (m *nbdMedium) Close() error { return nil }
