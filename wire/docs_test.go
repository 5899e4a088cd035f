package wire

import (
	"encoding/hex"
	"os"
	"strings"
	"testing"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/redo"
)

// TestDocsShowTheRealBytes: the conversation in docs/wire-format.md is one that
// this package would have.
func TestDocsShowTheRealBytes(t *testing.T) {
	raw, err := os.ReadFile("../docs/wire-format.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := string(raw)
	for _, f := range docConversation() {
		dump := hex.Dump(f.frame[:min(len(f.frame), f.show)])
		block := "    " + strings.ReplaceAll(strings.TrimSuffix(dump, "\n"), "\n", "\n    ") + "\n"
		if !strings.Contains(doc, block) {
			t.Errorf("docs/wire-format.md should show as %s:\n%s", f.name, block)
		}
	}
	for _, c := range codes {
		if row := "| " + c.name + " |"; !strings.Contains(doc, row) {
			t.Errorf("docs/wire-format.md has no row for the code %q", c.name)
		}
	}
}

type docFrame struct {
	name  string
	frame []byte
	show  int // bytes
}

// docConversation returns the frames of the worked example.
func docConversation() []docFrame {
	var (
		vol   = redoubt.VolumeID{0: 0xee, 15: 1}
		seg   = redoubt.SegmentID{0: 0x5e, 15: 1}
		whole = 1 << 20
	)
	frame := func(k Kind, req uint64, m Appender) []byte { return AppendFrame(nil, k, 0, req, m) }
	var a AppendBuilder
	a.Reset(make([]byte, 512), 512)
	var b redo.Builder
	b.Reset(a.Next(), vol, 0, 5, 0)
	b.Write(1, 3, 0, 16, []byte("hello"), true)
	a.Commit(0, len(b.Finish()), 0, 0)
	appended := a.Finish(4)
	ack := AppendAck(Begin(nil), Ack{Handle: 0, SCL: 1})
	Finish(ack, KindAck, 1, 0)
	page := make([]byte, redoubt.PageSize)
	copy(page[16:], "hello")
	pages := append(AppendPagesHead(nil, 5, []PageDesc{{Page: 3, LSN: 1, Sum: redo.PageSum(vol, 3, 1, page)}}), page...)
	return []docFrame{
		{"HELLO", frame(KindHello, 1, &Hello{MinVersion: 1, MaxVersion: 1, Name: "example"}), whole},
		{"WELCOME", frame(KindWelcome, 1, &Welcome{Version: 1, Lanes: 8, Align: 512, MaxFrame: 512 << 10, MaxPages: 64, MaxInFlight: 256,
			MaxHandles: 65536, Node: redoubt.NodeID{0: 0x0d, 15: 7}, Cluster: redoubt.ClusterID{0: 0xc1, 15: 9}, Name: "n7"}), whole},
		{"ATTACH", frame(KindAttach, 3, &Attach{Segment: seg, Volume: vol, VolumeEpoch: 5, MembershipEpoch: 1}), whole},
		{"ATTACHED", frame(KindAttached, 3, &Attached{Handle: 0, Lane: 2, Description: Description{
			Segment: seg, Volume: vol, Device: redoubt.DeviceID{0: 0xde, 15: 2}, Pages: 65536, Kind: redoubt.FullSegment, Lane: 2,
			VolumeEpoch: 5, MembershipEpoch: 1, GeometryEpoch: 1}}), 48},
		{"APPEND", appended, 128},
		{"ACK", ack, whole},
		{"READ", frame(KindRead, 5, &Read{Handle: 0, Point: 1, Pages: []uint32{3}}), whole},
		{"PAGES", pages, 80},
		{"ERROR", frame(KindError, 6, &Error{Code: CodeFenced, Entry: NoEntry, A: 6, B: 1, Message: "segment 5e00..01 is at epoch 6"}), whole},
	}
}
