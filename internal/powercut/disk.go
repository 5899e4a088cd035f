package powercut

import (
	"errors"
	"fmt"
)

// SectorSize is the unit in which a write is torn, in bytes: the smallest that any
// drive promises anything about, whatever its logical block size.
const SectorSize = 512

// errRange is a request outside the disk or off its sectors.
var errRange = errors.New("powercut: request outside the disk or not in whole sectors")

// DiskOptions tune a Disk. The zero value, given a Size, is an honest drive.
type DiskOptions struct {
	// Size in bytes, a multiple of SectorSize.
	Size int64

	// CacheBytes bounds what is unflushed; past it the oldest answered writes
	// become durable by themselves, as in a drive whose cache is full. Default
	// 64 MiB.
	CacheBytes int64

	// Lies makes the disk answer flushes and FUA writes without doing them: a
	// planted fault.
	Lies bool
}

// A Disk is a drive with a volatile write cache. Its methods may be called from
// any goroutine.
type Disk struct {
	supply *Supply
	opts   DiskOptions

	// Guarded by supply.mu.
	durable    []byte // what survives for certain
	current    []byte // what is read: durable with every cached write above it
	cache      []*Write
	cacheBytes int64
}

// A Write is one that the disk has received and that a flush has not covered yet.
type Write struct {
	off      int64
	data     []byte
	live     []bool // by sector: false once a later write to it is durable
	answered bool
}

// NewDisk returns a disk that holds image, and zeros past its end. It takes the
// image over.
func NewDisk(s *Supply, image []byte, o DiskOptions) (*Disk, error) {
	if o.CacheBytes == 0 {
		o.CacheBytes = 64 << 20
	}
	if o.Size <= 0 || o.Size%SectorSize != 0 || int64(len(image)) > o.Size || o.CacheBytes < 0 {
		return nil, fmt.Errorf("powercut: a disk of %d bytes with an image of %d and a cache of %d", o.Size, len(image), o.CacheBytes)
	}
	d := &Disk{supply: s, opts: o, durable: image}
	if int64(len(image)) < o.Size {
		d.durable = make([]byte, o.Size)
		copy(d.durable, image)
	}
	d.current = make([]byte, o.Size)
	copy(d.current, d.durable)
	return d, nil
}

// Size is the size in bytes.
func (d *Disk) Size() int64 { return d.opts.Size }

// Read fills p from off, which need not be in whole sectors.
func (d *Disk) Read(p []byte, off int64) error {
	d.supply.mu.Lock()
	defer d.supply.mu.Unlock()
	if err := d.supply.on(); err != nil {
		return err
	}
	if off < 0 || off > d.opts.Size-int64(len(p)) {
		return errRange
	}
	copy(p, d.current[off:])
	return nil
}

// Write receives a write of whole sectors and takes data over. The caller must
// say when it answers the client ([Disk.Answered]), because no flush that was
// received before covers this write. With fua set, or past the cache's bound,
// it is durable at once.
func (d *Disk) Write(data []byte, off int64, fua bool) (*Write, error) {
	d.supply.mu.Lock()
	defer d.supply.mu.Unlock()
	if err := d.supply.on(); err != nil {
		return nil, err
	}
	if len(data) == 0 || off < 0 || off > d.opts.Size-int64(len(data)) || off%SectorSize != 0 || len(data)%SectorSize != 0 {
		return nil, errRange
	}
	w := &Write{off: off, data: data, live: make([]bool, len(data)/SectorSize)}
	for i := range w.live {
		w.live[i] = true
	}
	copy(d.current[off:], data)
	d.cache = append(d.cache, w)
	d.cacheBytes += int64(len(data))
	if err := d.supply.countWrite(); err != nil {
		return nil, err // in flight when the power went
	}
	if fua && !d.opts.Lies {
		d.settle(func(x *Write) bool { return x == w })
	}
	d.destage()
	return w, nil
}

// Answered says that the client is about to learn that these writes have
// completed: a flush that is received from now on covers them.
func (d *Disk) Answered(ws ...*Write) {
	d.supply.mu.Lock()
	defer d.supply.mu.Unlock()
	for _, w := range ws {
		w.answered = true
	}
}

// Flush makes every answered write durable.
func (d *Disk) Flush() error {
	d.supply.mu.Lock()
	defer d.supply.mu.Unlock()
	if err := d.supply.on(); err != nil {
		return err
	}
	if err := d.supply.countFlush(); err != nil {
		return err
	}
	if !d.opts.Lies {
		d.settle(func(w *Write) bool { return w.answered })
	}
	return nil
}

// settle makes the chosen writes durable, in the order in which they were
// received, and takes them out of the cache. Sectors of earlier writes below
// them are dead from then on: they can't come back on top at a cut.
func (d *Disk) settle(chosen func(*Write) bool) {
	rest := d.cache[:0]
	for _, w := range d.cache {
		if !chosen(w) {
			rest = append(rest, w)
			continue
		}
		w.apply(d.durable, func(int) bool { return true })
		d.cacheBytes -= int64(len(w.data))
		for _, below := range rest {
			below.bury(w)
		}
	}
	clear(d.cache[len(rest):])
	d.cache = rest
}

// destage settles the oldest answered writes while the cache is over its bound.
func (d *Disk) destage() {
	for d.cacheBytes > d.opts.CacheBytes {
		var oldest *Write
		for _, w := range d.cache {
			if w.answered {
				oldest = w
				break
			}
		}
		if oldest == nil {
			return
		}
		d.settle(func(w *Write) bool { return w == oldest })
	}
}

// apply writes the live sectors that are chosen to image.
func (w *Write) apply(image []byte, chosen func(sector int) bool) {
	for i, live := range w.live {
		if at := i * SectorSize; live && chosen(i) {
			copy(image[w.off+int64(at):], w.data[at:at+SectorSize])
		}
	}
}

// bury kills the sectors of w that above has overwritten.
func (w *Write) bury(above *Write) {
	from := max(w.off, above.off)
	to := min(w.off+int64(len(w.data)), above.off+int64(len(above.data)))
	for at := from; at < to; at += SectorSize {
		w.live[(at-w.off)/SectorSize] = false
	}
}
