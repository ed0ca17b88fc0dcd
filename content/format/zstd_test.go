package format_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"
	"github.com/peelfs/peel/content/format"
	"github.com/peelfs/peel/content/index"
	"github.com/peelfs/peel/content/internal/sample"
)

// place is a place to resume, in the tar and in the blob.
type place struct{ tar, blob int64 }

// unzstd decodes a blob and returns the places to resume.
func unzstd(blob io.Reader) ([]byte, []place, error) {
	var places []place
	r, err := format.Unzstd(blob, func(tar, blob int64) { places = append(places, place{tar, blob}) })
	if err != nil {
		return nil, nil, err
	}
	out, err := io.ReadAll(r)
	return out, places, err
}

// Every frame is found where it starts, however the blob comes in.
func TestFrames(t *testing.T) {
	raw, _ := theTar(t)
	var blob []byte
	var want []place
	var tar int64
	add := func(frame []byte, n int) {
		want = append(want, place{tar, int64(len(blob))})
		blob, tar = append(blob, frame...), tar+int64(n)
	}
	add(sample.Skippable(nil), 0)
	for _, n := range []int{0, 1, 100, 300_000, 128 << 10, 70_000} {
		p := raw[tar : tar+int64(n)]
		add(sample.Zstd(t, p, zstd.WithZeroFrames(true), zstd.WithEncoderCRC(n%200 == 0), zstd.WithSingleSegment(n == 100)), n)
		add(sample.Skippable(p[:n/2]), 0)
	}
	zeros := make([]byte, 400_000) // blocks of one repeated byte
	add(sample.Zstd(t, zeros), len(zeros))
	want = append(want, place{tar, int64(len(blob))})
	data := append(bytes.Clone(raw[:tar-int64(len(zeros))]), zeros...)
	for name, wrap := range map[string]func(io.Reader) io.Reader{
		"at once": func(r io.Reader) io.Reader { return r }, "in halves": iotest.HalfReader, "by byte": iotest.OneByteReader, "with EOF": iotest.DataErrReader,
	} {
		t.Run(name, func(t *testing.T) {
			got, places, err := unzstd(wrap(bytes.NewReader(blob)))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, data) {
				t.Error("it is not what was compressed")
			}
			if len(places) != len(want) {
				t.Fatalf("%d places, want %d", len(places), len(want))
			}
			for i := range want {
				if places[i] != want[i] {
					t.Errorf("place %d is %v, want %v", i, places[i], want[i])
				}
			}
		})
	}
}

// Spans are whole frames, and no shorter than they must be.
func TestSpansOfFrames(t *testing.T) {
	for _, encoding := range []string{"frames", "skippable frames"} {
		t.Run(encoding, func(t *testing.T) {
			tarball, blob := blobOf(t, encoding)
			_, places, err := unzstd(bytes.NewReader(blob))
			if err != nil {
				t.Fatal(err)
			}
			starts := map[place]bool{}
			for _, p := range places {
				starts[p] = true
			}
			f, _ := build(t, tarball, blob)
			spans, err := f.Spans()
			if err != nil || f.Format != index.Zstd || len(spans) < 2 {
				t.Fatalf("%d spans of %s (%v)", len(spans), f.Format, err)
			}
			for i, s := range spans {
				if !starts[place{s.TarOff, s.BlobOff}] || i < len(spans)-1 && s.TarLen < format.SpanSize {
					t.Errorf("span of %d bytes at %d, in the blob at %d", s.TarLen, s.TarOff, s.BlobOff)
				}
			}
			if last := spans[len(spans)-1]; last.BlobOff+last.BlobLen != int64(len(blob)) {
				t.Error("the spans do not end with the blob")
			}
		})
	}
}

// Whatever the zstd tool makes is read, and it reads what twins are.
func TestZstdTool(t *testing.T) {
	tool, err := exec.LookPath("zstd")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("the zstd tool is not installed: ", err)
	}
	dir := t.TempDir()
	tarball, _ := theTar(t)
	tarball = sample.Wrap(t, tarball[:600_000])
	path := filepath.Join(dir, "tar")
	if err := os.WriteFile(path, tarball, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range []string{"-1", "-3 --no-check", "-12 -T4 -B512KiB", "-19 --long=27", "--ultra -22 --long=27 --no-content-size", "--fast=5 --rsyncable"} {
		t.Run(args, func(t *testing.T) {
			for _, input := range []*exec.Cmd{
				exec.Command(tool, append(strings.Fields(args), "-q", "-c", path)...),
				exec.Command("sh", "-c", "exec zstd -q -c "+args+" < "+path), // of a length that is not known before
			} {
				blob, err := input.Output()
				if err != nil {
					t.Fatal(err)
				}
				f, _ := build(t, tarball, blob)
				if got := decodeAll(t, f, blob); !bytes.Equal(got, tarball) {
					t.Error("the spans together are not the tar")
				}
			}
		})
	}
	var twin bytes.Buffer
	if _, err := format.Build(t.Context(), sample.Layer(tarball, tarball), bytes.NewReader(tarball), format.Options{Twin: &twin}); err != nil {
		t.Fatal(err)
	}
	decode := exec.Command(tool, "-d", "-q", "-c")
	decode.Stdin = &twin
	if out, err := decode.Output(); err != nil || !bytes.Equal(out, tarball) {
		t.Errorf("the tool reads %d bytes of a twin of %d (%v)", len(out), len(tarball), err)
	}
}

func TestZstdRefuses(t *testing.T) {
	tarball, _ := theTar(t)
	tarball = sample.Wrap(t, tarball[:500_000])
	blob := sample.Zstd(t, tarball)
	two := append(sample.Zstd(t, tarball[:1000]), blob...)
	change := func(p []byte, at int, b ...byte) []byte {
		p = bytes.Clone(p)
		copy(p[(at+len(p))%len(p):], b)
		return p
	}
	dict := sample.Zstd(t, tarball, zstd.WithEncoderDictRaw(77, tarball[:4096]))
	header := func(window byte) []byte { return []byte{0x28, 0xb5, 0x2f, 0xfd, 0, window, 1, 0, 0} }
	single := []byte{0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0} // of 4 GiB
	tests := map[string]struct {
		blob    []byte
		wrapped error
		says    string
	}{
		"dictionary":            {dict, format.ErrUnsupported, "dictionary 77"},
		"window of 256 MiB":     {header(18 << 3), format.ErrUnsupported, "window of 268435456 bytes"},
		"window of 3 TiB":       {header(0xff), format.ErrUnsupported, "window of"},
		"segment of 4 GiB":      {single, format.ErrUnsupported, "window of 4294967296 bytes"},
		"wrong checksum":        {change(blob, -1, ^blob[len(blob)-1]), zstd.ErrCRCMismatch, "CRC"},
		"reserved block":        {change(blob, 6, 7), nil, "decode zstd"},
		"garbage behind":        {append(bytes.Clone(blob), "garbage"...), zstd.ErrMagicMismatch, "frame at byte"},
		"part of a magic":       {append(bytes.Clone(blob), 0x28, 0xb5), io.ErrUnexpectedEOF, "frame at byte"},
		"gzip behind":           {append(bytes.Clone(blob), sample.Gzip(t, tarball, 1)...), zstd.ErrMagicMismatch, "frame at byte"},
		"skippable cut":         {append(bytes.Clone(blob), sample.Skippable(make([]byte, 100))[:50]...), io.ErrUnexpectedEOF, "skippable"},
		"skippable header cut":  {append(bytes.Clone(blob), sample.Skippable(nil)[:6]...), io.ErrUnexpectedEOF, "frame at byte"},
		"cut before a checksum": {blob[:len(blob)-4], io.ErrUnexpectedEOF, "decode zstd"},
		"cut in a checksum":     {blob[:len(blob)-1], io.ErrUnexpectedEOF, "decode zstd"},
		"cut in a block":        {two[:len(two)/2], io.ErrUnexpectedEOF, "decode zstd"},
		"cut in a header":       {blob[:5], io.ErrUnexpectedEOF, "frame at byte 0"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			raw, err := format.Build(t.Context(), sample.Layer(tarball, tt.blob), bytes.NewReader(tt.blob), format.Options{})
			if err == nil || raw != nil {
				t.Fatalf("an index of %d bytes and no error", len(raw))
			}
			if tt.wrapped != nil && !errors.Is(err, tt.wrapped) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %q, should say %q and wrap %v", err, tt.says, tt.wrapped)
			}
		})
	}
}

// Wherever a blob ends, that is an error of it; and so is a failure to read it.
func TestZstdCut(t *testing.T) {
	tarball := sample.Wrap(t, nil)
	blob := append(sample.Zstd(t, tarball[:5000], zstd.WithEncoderCRC(false)), sample.Zstd(t, tarball[5000:])...)
	second := int64(len(sample.Zstd(t, tarball[:5000], zstd.WithEncoderCRC(false))))
	broken := errors.New("connection reset")
	for n := range int64(len(blob)) {
		if n > 200 && n%97 > 0 && n < int64(len(blob))-200 && (n < second-50 || n > second+50) {
			continue
		}
		_, _, err := unzstd(bytes.NewReader(blob[:n]))
		if ends := n == 0 || n == second; (err == nil) != ends || err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut at %d of %d: %v", n, len(blob), err)
		}
		_, _, err = unzstd(io.MultiReader(bytes.NewReader(blob[:n]), iotest.ErrReader(broken)))
		if !errors.Is(err, broken) {
			t.Errorf("broken at %d of %d: %v", n, len(blob), err)
		}
	}
}

// FuzzFrames compares with the decoder that takes a blob as a whole: the same
// bytes come out of both, from the start and from every place to resume.
func FuzzFrames(f *testing.F) {
	for _, blob := range seeds(f) {
		f.Add(blob)
	}
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0x58, 3, 0, 0x10, 'x', 1, 0, 0})
	const most = 1 << 20 // bytes that are looked at: four bytes of blob may give 128 KiB
	f.Fuzz(func(t *testing.T, blob []byte) {
		var places []place
		r, err := format.Unzstd(bytes.NewReader(blob), func(tar, blob int64) { places = append(places, place{tar, blob}) })
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(io.LimitReader(r, most))
		if len(got) == most {
			return
		}
		want, wantErr := decodeWhole(t, blob, most)
		if (err == nil) != (wantErr == nil) || err == nil && !bytes.Equal(got, want) {
			t.Fatalf("%d bytes (%v), want %d (%v)", len(got), err, len(want), wantErr)
		}
		if err != nil {
			return
		}
		p := places[len(places)/2]
		if rest, err := decodeWhole(t, blob[p.blob:], most); err != nil || !bytes.Equal(rest, got[p.tar:]) {
			t.Errorf("from %d on it is %d bytes (%v), want %d", p.blob, len(rest), err, len(got)-int(p.tar))
		}
	})
}

func decodeWhole(t *testing.T, blob []byte, most int64) ([]byte, error) {
	dec, err := zstd.NewReader(struct{ io.Reader }{bytes.NewReader(blob)},
		zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(format.MaxWindow))
	if err != nil {
		t.Fatal(err)
	}
	defer dec.Close()
	return io.ReadAll(io.LimitReader(dec, most))
}

// A span that would give more than it should costs no more memory than it
// should.
func TestDecodeBomb(t *testing.T) {
	zeros := make([]byte, 64<<20)
	for name, tt := range map[string]struct {
		encoding index.Format
		blob     []byte
	}{"gzip": {index.Gzip, sample.Gzip(t, zeros, 1)}, "zstd": {index.Zstd, sample.Zstd(t, zeros)}} {
		t.Run(name, func(t *testing.T) {
			s := &index.Span{TarLen: 1 << 20, BlobLen: int64(len(tt.blob)), Member: true}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			if _, err := format.Decode(tt.encoding, s, tt.blob, nil, nil); !errors.Is(err, format.ErrCorrupt) {
				t.Errorf("error %v", err)
			}
			runtime.ReadMemStats(&after)
			if n := after.TotalAlloc - before.TotalAlloc; n > 8<<20 {
				t.Errorf("%d bytes of memory for a span of %d", n, s.TarLen)
			}
		})
	}
}
