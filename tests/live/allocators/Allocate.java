// Allocates, drops and checks memory from several threads, with G1 at work: Allocate SECONDS SEED.
import java.util.Random;

public class Allocate {
    static final class Block {
        final byte[] data;
        final int kind, version;

        Block(Random r, int size, int version) {
            data = new byte[size];
            kind = r.nextInt(5);
            this.version = version;
            for (int i = 0; i < size; i++) {
                if (data[i] != 0) fail("fresh memory", i);
                data[i] = at(i);
            }
        }

        byte at(int i) { return (byte) ((i % 16 + 1) * 37 * (kind + 3) + version * 11); }

        void check() {
            for (int i = 0; i < data.length; i++) if (data[i] != at(i)) fail("content", i);
        }

        void fail(String what, int i) {
            System.out.println("WRONG " + what + ": byte " + i + " of " + data.length + " is " + data[i]);
            Runtime.getRuntime().halt(1);
        }
    }

    public static void main(String[] arguments) throws Exception {
        long end = System.nanoTime() + (long) (Double.parseDouble(arguments[0]) * 1e9);
        int seed = Integer.parseInt(arguments[1]);
        System.out.println("READY");
        Thread[] threads = new Thread[3];
        for (int n = 0; n < threads.length; n++) {
            int number = n;
            threads[n] = new Thread(() -> {
                Random r = new Random(seed * 8 + number);
                Block[] resting = new Block[64], busy = new Block[256];
                long moved = System.nanoTime();
                int next = 0;
                while (System.nanoTime() < end) {
                    for (int k = 0; k < 32; k++) {
                        int i = r.nextInt(busy.length);
                        if (busy[i] != null) busy[i].check();
                        busy[i] = new Block(r, 1 + r.nextInt(20000), r.nextInt(1000));
                    }
                    if (System.nanoTime() - moved > 20_000_000) {
                        for (int k = 0; k < 4; k++, next++) {
                            int i = next % resting.length;
                            if (resting[i] != null) resting[i].check();
                            resting[i] = new Block(r, 65536, 0);
                        }
                        if (number == 0 && r.nextInt(16) == 0) System.gc(); // gives back what is free
                        moved = System.nanoTime();
                    }
                }
                for (Block b : resting) if (b != null) b.check();
                for (Block b : busy) if (b != null) b.check();
            });
            threads[n].start();
        }
        for (Thread t : threads) t.join();
        System.out.println("OK");
    }
}
