package flatten

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"thaw/ext4"
)

// Pack reads the uncompressed tar of one layer to the end of r and writes its
// data to w, at offsets that count from the start of the layer's region. Each
// run is written front to back, and no byte twice; what is not written is
// zero. Content that cannot be flattened gives an error wrapping ErrLayer that
// names the entry; an error of r or w is passed on. Memory grows with the
// number of entries and not with their bytes.
//
// spend, if not nil, is told of every n bytes of a large file before they are
// read, holes included: a sparse file takes time for bytes that no tar has. Its
// error ends Pack.
func Pack(r io.Reader, w io.WriterAt, spend func(n int64) error) (*Layer, error) {
	p := &packer{runs: newRuns(w, 0), layer: &Layer{}, source: &source{r: r}, spend: spend}
	tr := tar.NewReader(p.source)
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, p.unreadable(fmt.Sprintf("the tar header behind %.200q", p.last), err)
		}
		if err := p.add(hdr, tr); err != nil {
			return nil, err
		}
	}
	if err := p.cutBehind(len(p.open) - 1); err != nil {
		return nil, err
	}
	// The rest of the stream is padding, and the reader's own end: digests.
	if _, err := io.Copy(io.Discard, r); err != nil {
		return nil, err
	}
	p.layer.data = p.runs.next
	p.layer.slots = p.slot
	p.layer.table = slices.Clip(p.layer.table)
	return p.layer, nil
}

type packer struct {
	source *source
	spend  func(n int64) error // may be nil
	runs   *runs
	layer  *Layer
	last   string    // path of the last entry read
	before string    // path of the last entry in the layer's table
	open   []pending // entries since the open run began
	slot   uint32    // next free inode
	bytes  int64     // of all files
	block  []byte    // for large files
}

// add packs one tar entry.
func (p *packer) add(hdr *tar.Header, body io.Reader) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	e, err := newEntry(hdr)
	if err != nil || e == nil {
		return err
	}
	if int(p.layer.count)+len(p.open) >= maxEntries {
		return fmt.Errorf("%w: more than %d entries", ErrLayer, maxEntries)
	}
	p.last = e.path
	if e.kind != kindLink && e.kind != kindWhiteout && e.kind != kindOpaque {
		if err := p.xattrs(e, hdr); err != nil {
			return err
		}
	}
	return p.content(e, body)
}

// content places what the entry holds and notes where.
func (p *packer) content(e *entry, body io.Reader) error {
	if e.kind == kindSymlink && len(e.target) > ext4.FastSymlink {
		return p.small(e, strings.NewReader(e.target), len(e.target))
	}
	if e.kind != kindFile || e.size == 0 {
		return p.push(pending{entry: e})
	}
	p.bytes += e.size
	if e.size > maxFile || p.bytes > maxLayer {
		return fmt.Errorf("%w: %q: a file of %d bytes; 256 GiB a file and 1 TiB a layer are the limits", ErrLayer, e.path, e.size)
	}
	if e.size < largeFile {
		return p.small(e, body, int(e.size))
	}
	var err error
	if e.extents, err = p.large(e, body); err != nil {
		return err
	}
	return p.push(pending{entry: e})
}

// small puts content into the open run.
func (p *packer) small(e *entry, body io.Reader, size int) error {
	blocks := (size + blockSize - 1) / blockSize
	if err := p.room(blocks * blockSize); err != nil {
		return err
	}
	off, b, err := p.runs.place(size)
	if err != nil {
		return err
	}
	if _, err := io.ReadFull(body, b); err != nil {
		return p.unreadable(fmt.Sprintf("%.200q", e.path), err)
	}
	e.extents = []ext4.Extent{{Physical: uint32(off / blockSize), Count: uint32(blocks)}}
	return p.push(pending{entry: e, hash: hashPath(0, e.path), content: true})
}

// source remembers how reading went, to tell a bad tar from a failing reader.
type source struct {
	r   io.Reader
	err error // other than io.EOF
}

func (s *source) Read(b []byte) (int, error) {
	n, err := s.r.Read(b)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// unreadable makes the error for a part of the tar: that of the reader, if it
// has one, or else one that says that the layer is bad.
func (p *packer) unreadable(what string, err error) error {
	switch {
	case p.source.err != nil:
		return fmt.Errorf("reading %s: %w", what, p.source.err)
	case err == io.EOF: // an end too early must not look like a proper one
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%w: reading %s: %w", ErrLayer, what, err)
}

// large streams a file into a run of its own; long runs of zero blocks become
// holes.
func (p *packer) large(e *entry, body io.Reader) ([]ext4.Extent, error) {
	if p.block == nil {
		p.block = make([]byte, 256<<10)
	}
	m := mapper{w: p.runs.w, base: p.runs.large()}
	for left := e.size; left > 0; {
		b := p.block[:min(int64(len(p.block)), left)]
		if p.spend != nil {
			if err := p.spend(int64(len(b))); err != nil {
				return nil, err
			}
		}
		if _, err := io.ReadFull(body, b); err != nil {
			return nil, p.unreadable(fmt.Sprintf("%.200q", e.path), err)
		}
		left -= int64(len(b))
		full := p.block[:(len(b)+blockSize-1)/blockSize*blockSize]
		clear(full[len(b):])
		if err := m.write(full); err != nil {
			return nil, err
		}
	}
	m.close()
	p.runs.took(int64(m.used) * blockSize)
	return ext4.SplitExtents(m.extents), nil
}

// mapper writes the blocks of a file one behind the other and leaves out holes.
type mapper struct {
	w       io.WriterAt
	base    int64 // offset of its first block
	logical uint32
	zeros   uint32 // zero blocks since the last other one
	used    uint32 // blocks given to the file
	extents []ext4.Extent
}

// write takes whole blocks.
func (m *mapper) write(b []byte) error {
	for len(b) > 0 {
		n := 0
		for n < len(b) && !isZero(b[n:n+blockSize]) {
			n += blockSize
		}
		if n == 0 {
			m.zeros++
			m.logical++
			b = b[blockSize:]
			continue
		}
		m.extend()
		if _, err := m.w.WriteAt(b[:n], m.base+int64(m.used)*blockSize); err != nil {
			return err
		}
		count := uint32(n / blockSize)
		m.extents[len(m.extents)-1].Count += count
		m.used += count
		m.logical += count
		b = b[n:]
	}
	return nil
}

// extend prepares for data at logical: many zeros before it are a hole, few
// are blocks of the extent.
func (m *mapper) extend() {
	if m.zeros >= holeBlocks || len(m.extents) == 0 && m.zeros > 0 {
		m.extents = append(m.extents, ext4.Extent{Logical: m.logical, Physical: uint32(m.base/blockSize) + m.used})
	} else {
		if len(m.extents) == 0 {
			m.extents = append(m.extents, ext4.Extent{Logical: m.logical, Physical: uint32(m.base / blockSize)})
		}
		m.extents[len(m.extents)-1].Count += m.zeros
		m.used += m.zeros
	}
	m.zeros = 0
}

// close decides about zeros at the end: few belong to the last extent.
func (m *mapper) close() {
	if m.zeros < holeBlocks && len(m.extents) > 0 {
		m.extents[len(m.extents)-1].Count += m.zeros
		m.used += m.zeros
	}
}

var zeroBlock [blockSize]byte

func isZero(b []byte) bool { return string(b) == string(zeroBlock[:]) }

// xattrs notes the entry's attributes and places the values that need an inode
// of their own.
func (p *packer) xattrs(e *entry, hdr *tar.Header) error {
	const prefix = "SCHILY.xattr."
	var list []ext4.Xattr
	for key, value := range hdr.PAXRecords {
		name, ok := strings.CutPrefix(key, prefix)
		if !ok {
			continue
		}
		x, err := ext4.NewXattr(name, []byte(value))
		if errors.Is(err, ext4.ErrXattrNamespace) {
			p.layer.dropped++
			continue
		}
		if err != nil {
			return fmt.Errorf("%w: %q: %w", ErrLayer, e.path, err)
		}
		list = append(list, x)
	}
	external, err := ext4.PlanXattrs(list)
	if err != nil {
		return fmt.Errorf("%w: %q: %w", ErrLayer, e.path, err)
	}
	need := 0
	for _, x := range external {
		need += (len(x.Value) + blockSize - 1) / blockSize * blockSize
	}
	if err := p.room(need); err != nil {
		return err
	}
	starts := map[*ext4.Xattr]uint32{}
	for _, x := range external {
		off, b, err := p.runs.place(len(x.Value))
		if err != nil {
			return err
		}
		copy(b, x.Value)
		x.Inode, x.Value = 1, nil // the inode is known once the run is cut
		starts[x] = uint32(off / blockSize)
	}
	for i := range list {
		e.xattrs = append(e.xattrs, xattr{list[i], starts[&list[i]]})
	}
	if len(external) == 0 {
		return nil
	}
	return p.push(pending{entry: e, values: true})
}
