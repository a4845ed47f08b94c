package ext4

import (
	"encoding/binary"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// seedText is the hash seed as debugfs takes it: a UUID.
func seedText() string {
	var b []byte
	for _, w := range hashSeed {
		b = binary.LittleEndian.AppendUint32(b, w)
	}
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func TestNameHashAgainstDebugfs(t *testing.T) {
	var names, commands []string
	for n := 1; n <= MaxName; n++ { // every remainder of the 32 bytes that are hashed at once
		names = append(names, strings.Repeat("Thaw+0123456789_abcdefghijklmnopqrstuvwxyz.", 7)[n%17:][:n])
	}
	for _, name := range names {
		commands = append(commands, "dx_hash -h half_md4 -s "+seedText()+" "+name)
	}
	out, err := run(t, strings.Join(commands, "\n"), "debugfs", "-f", "-")
	if err != nil {
		t.Fatal(err, out)
	}
	found := regexp.MustCompile(`Hash of (\S+) is 0x([0-9a-f]+)`).FindAllStringSubmatch(out, -1)
	if len(found) != len(names) {
		t.Fatalf("debugfs gave %d hashes of %d: %.500s", len(found), len(names), out)
	}
	for i, m := range found {
		want, _ := strconv.ParseUint(m[2], 16, 32)
		if m[1] != names[i] || nameHash(names[i]) != uint32(want) {
			t.Errorf("hash of %q is %#x, debugfs: %#x", names[i], nameHash(names[i]), want)
		}
	}
}

func TestNameHashIsNeverEndOfDirectory(t *testing.T) {
	for i := range 100_000 {
		if h := nameHash(strconv.Itoa(i)); h&1 != 0 || h == 1<<32-2 {
			t.Fatalf("hash of %d is %#x", i, h)
		}
	}
}

// The catalogue value of CRC-16/MODBUS: reflected 0x8005, initially all ones.
func TestCRC16(t *testing.T) {
	if got := crc16(0xFFFF, []byte("123456789")); got != 0x4B37 {
		t.Errorf("got %#x", got)
	}
}
