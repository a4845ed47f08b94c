package sigv4

import "testing"

// What every request pays for being verified.
func BenchmarkVerify(b *testing.B) {
	r, o := signed(b, "POST", arnPath, "x", ""), options()
	hash := hashOf("x")
	for b.Loop() {
		if _, err := Verify(r, hash, o); err != nil {
			b.Fatal(err)
		}
	}
}
