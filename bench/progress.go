package bench

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// A Progress shows how far a long work is: a bar that is redrawn on a terminal,
// a line every two seconds elsewhere. A nil Progress shows nothing.
type Progress struct {
	mu    sync.Mutex
	w     io.Writer
	tty   bool
	label string
	next  time.Time
	shown bool
}

const (
	redrawEvery = 100 * time.Millisecond
	lineEvery   = 2 * time.Second
	barWidth    = 30
)

// NewProgress returns a Progress on w. A nil w shows nothing.
func NewProgress(w io.Writer, label string) *Progress {
	if w == nil {
		return nil
	}
	p := &Progress{w: w, tty: isTerminal(w), label: label}
	if !p.tty {
		p.next = time.Now().Add(lineEvery)
	}
	return p
}

// isTerminal reports that somebody may be looking.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	fi, err := f.Stat()
	return err == nil && fi.Mode()&os.ModeCharDevice != 0
}

// Show says that done of total is done (total 0: nobody knows the whole), and
// what else there is to say. It may be called as often as one likes.
func (p *Progress) Show(done, total uint64, detail string) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if now.Before(p.next) {
		return
	}
	share := ""
	if total > 0 {
		share = fmt.Sprintf("%3d %%  ", min(100, done*100/total))
	}
	if !p.tty {
		p.next = now.Add(lineEvery)
		fmt.Fprintf(p.w, "%s: %s%s\n", p.label, share, detail)
		return
	}
	p.next = now.Add(redrawEvery)
	bar := ""
	if total > 0 {
		n := int(min(done, total) * barWidth / total)
		bar = "[" + strings.Repeat("#", n) + strings.Repeat(".", barWidth-n) + "] "
	}
	fmt.Fprintf(p.w, "\r\033[K%s %s%s%s", p.label, bar, share, detail)
	p.shown = true
}

// Done removes the bar.
func (p *Progress) Done() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shown {
		fmt.Fprintf(p.w, "\r\033[K")
		p.shown = false
	}
}

// Say prints a line, above the bar if there is one.
func (p *Progress) Say(format string, args ...any) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shown {
		fmt.Fprintf(p.w, "\r\033[K")
		p.shown = false
	}
	fmt.Fprintf(p.w, p.label+": "+format+"\n", args...)
}
