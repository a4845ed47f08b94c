package flatten

import (
	"fmt"
	"math"
)

// pending is an entry, or the values of its large attributes, that waits for
// the open run to be cut:
//
//	0           runMin                          runSize
//	|  a  b  c  d  |  e  f  g  h  i  j  k  l  m  |  n
//	                           ^ lowest hash of a path
//
// n does not fit, so the run is cut behind h; i to m begin the next one. With a
// file more or less in front the window lies elsewhere, but where it overlaps
// with the old one, as it mostly does, the lowest hash is that of the same
// file: the next run begins there as it did before.
type pending struct {
	*entry
	hash    uint64 // of the path
	end     int    // bytes of the run up to its end
	content bool   // its content lies in the run
	values  bool   // not the entry: its values, which lie in the run
}

// maxOpen bounds how many entries wait for a cut. Only layers with hardly any
// bytes in their files reach it.
const maxOpen = 8192

// room cuts the open run until n bytes fit in.
func (p *packer) room(n int) error {
	if n > runSize {
		return fmt.Errorf("%w: more than %d bytes of large attributes behind %.200q", ErrLayer, runSize, p.last)
	}
	for len(p.runs.buf)+n > runSize {
		if err := p.cut(); err != nil {
			return err
		}
	}
	return nil
}

// push notes what has just been placed.
func (p *packer) push(o pending) error {
	o.end = len(p.runs.buf)
	p.open = append(p.open, o)
	if len(p.open) < maxOpen {
		return nil
	}
	return p.cut()
}

// cut ends the open run behind the file whose path hashes lowest, among those
// that end behind runMin; if there is none, behind all.
func (p *packer) cut() error {
	last, lowest := len(p.open)-1, uint64(math.MaxUint64)
	for i := range p.open {
		if o := &p.open[i]; o.content && o.end >= runMin && o.hash < lowest {
			last, lowest = i, o.hash
		}
	}
	return p.cutBehind(last)
}

// cutBehind ends the open run behind the entry with index last, gives inodes to
// the entries up to there, and begins a run with what the others have.
func (p *packer) cutBehind(last int) error {
	if last < 0 {
		return nil
	}
	end := p.open[last].end
	moved, err := p.runs.split(end)
	if err != nil {
		return err
	}
	for i := range p.open[:last+1] {
		p.settle(&p.open[i])
	}
	p.slot = (p.slot + slotAlign - 1) / slotAlign * slotAlign
	rest := copy(p.open, p.open[last+1:])
	clear(p.open[rest:])
	p.open = p.open[:rest]
	for i := range p.open {
		p.open[i].end -= end
		p.open[i].move(int32(moved / blockSize))
	}
	return nil
}

// settle gives an entry its inode and puts it into the layer's table.
func (p *packer) settle(o *pending) {
	if o.values {
		for i := range o.xattrs {
			if x := &o.xattrs[i]; x.Inode != 0 {
				p.slot++
				x.Inode = p.slot
			}
		}
		return
	}
	switch o.kind {
	case kindDir, kindLink, kindWhiteout, kindOpaque:
	default:
		o.slot = p.slot
		p.slot++
	}
	p.layer.table = appendEntry(p.layer.table, p.before, o.entry)
	p.layer.count++
	p.before = o.path
}

// move follows what lies in the run by so many blocks.
func (o *pending) move(blocks int32) {
	switch {
	case o.content:
		o.extents[0].Physical += uint32(blocks)
	case o.values:
		for i := range o.xattrs {
			if x := &o.xattrs[i]; x.Inode != 0 {
				x.start += uint32(blocks)
			}
		}
	}
}
