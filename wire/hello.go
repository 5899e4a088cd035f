package wire

import (
	"encoding/binary"
	"strings"
	"unicode/utf8"

	"github.com/redoubt-storage/redoubt"
)

const (
	helloSize   = 4
	welcomeSize = 56
)

// A Hello opens a connection: the range of versions that the client speaks, and
// its name, for the node's log.
type Hello struct {
	MinVersion, MaxVersion uint8
	Name                   string // UTF-8, at most MaxName bytes
}

// Append appends the body of HELLO to dst.
func (m *Hello) Append(dst []byte) []byte {
	dst = append(dst, m.MinVersion, m.MaxVersion, 0, 0)
	return append(dst, text(m.Name, MaxName)...)
}

// Decode reads the body of HELLO.
func (m *Hello) Decode(b []byte) error {
	if len(b) < helloSize || len(b) > helloSize+MaxName {
		return invalid("HELLO of %d bytes", len(b))
	}
	name := b[helloSize:]
	if b[2] != 0 || b[3] != 0 || b[0] == 0 || b[0] > b[1] || !utf8.Valid(name) {
		return invalid("HELLO of versions %d to %d, reserved bytes %x, name %q", b[0], b[1], b[2:4], name)
	}
	*m = Hello{MinVersion: b[0], MaxVersion: b[1], Name: string(name)}
	return nil
}

// A Welcome is the node's answer to HELLO: the version they speak from here on,
// the limits, and who the node is.
type Welcome struct {
	Version     uint8
	Lanes       uint8  // lanes of the node, numbered from 0: one for each device
	Align       uint32 // client frames are padded to a multiple of this, bytes
	MaxFrame    uint32 // largest client frame, padded, bytes; and largest node frame but PAGES
	MaxPages    uint32 // most pages in one READ
	MaxInFlight uint32 // most requests without an answer, APPEND frames not counted
	MaxHandles  uint32 // most segments attached by one connection
	Node        redoubt.NodeID
	Cluster     redoubt.ClusterID
	Name        string // UTF-8, at most MaxName bytes
}

// Append appends the body of WELCOME to dst.
func (m *Welcome) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = append(dst, m.Version, m.Lanes, 0, 0)
	dst = le.AppendUint32(dst, m.Align)
	dst = le.AppendUint32(dst, m.MaxFrame)
	dst = le.AppendUint32(dst, m.MaxPages)
	dst = le.AppendUint32(dst, m.MaxInFlight)
	dst = le.AppendUint32(dst, m.MaxHandles)
	dst = append(dst, m.Node[:]...)
	dst = append(dst, m.Cluster[:]...)
	return append(dst, text(m.Name, MaxName)...)
}

// Decode reads the body of WELCOME and refuses limits that no node may state.
func (m *Welcome) Decode(b []byte) error {
	if len(b) < welcomeSize || len(b) > welcomeSize+MaxName {
		return invalid("WELCOME of %d bytes", len(b))
	}
	le := binary.LittleEndian
	w := Welcome{
		Version:     b[0],
		Lanes:       b[1],
		Align:       le.Uint32(b[4:]),
		MaxFrame:    le.Uint32(b[8:]),
		MaxPages:    le.Uint32(b[12:]),
		MaxInFlight: le.Uint32(b[16:]),
		MaxHandles:  le.Uint32(b[20:]),
		Node:        redoubt.NodeID(b[24:40]),
		Cluster:     redoubt.ClusterID(b[40:56]),
		Name:        string(b[welcomeSize:]),
	}
	if le.Uint16(b[2:]) != 0 || !utf8.ValidString(w.Name) {
		return invalid("WELCOME with reserved bytes %x, name %q", b[2:4], w.Name)
	}
	if err := w.Check(); err != nil {
		return err
	}
	*m = w
	return nil
}

// Check reports which of the limits no node may state.
func (m *Welcome) Check() error {
	switch {
	case m.Version == 0:
		return invalid("WELCOME to version 0")
	case m.Align < HelloAlign || m.Align > MaxAlign || m.Align&(m.Align-1) != 0:
		return invalid("WELCOME: alignment %d is no power of two from %d to %d", m.Align, HelloAlign, MaxAlign)
	case m.MaxFrame < MinFrameLimit || m.MaxFrame > MaxFrameLimit || m.MaxFrame%MaxAlign != 0:
		return invalid("WELCOME: frame limit %d is no multiple of %d from %d to %d", m.MaxFrame, MaxAlign, MinFrameLimit, MaxFrameLimit)
	case m.MaxPages < 1 || m.MaxPages > MaxPages:
		return invalid("WELCOME: %d pages in a READ, want 1 to %d", m.MaxPages, MaxPages)
	case m.MaxInFlight < 1 || m.MaxInFlight > MaxInFlightLimit:
		return invalid("WELCOME: %d requests in flight, want 1 to %d", m.MaxInFlight, MaxInFlightLimit)
	case m.MaxHandles < 1 || m.MaxHandles > MaxHandlesLimit:
		return invalid("WELCOME: %d handles, want 1 to %d", m.MaxHandles, MaxHandlesLimit)
	}
	return nil
}

// text makes s valid UTF-8 of at most n bytes, as every decoder demands.
func text(s string, n int) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
