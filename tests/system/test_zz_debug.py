from tests.system.test_dead_letters_system import *
import anyio
async def test_zz(var, empty_database):
    environment = {**empty_database, **IMPATIENT}
    async with DaemonProcess(var, demo=False, environment=environment) as daemon:
        await daemon.start()
        await send_email(daemon, "a\0b")
        found = await letters(daemon, 1)
        r = await daemon.command("dead-letters", "replay", found[0].id, "--yes", "--json")
        for _ in range(20):
            await anyio.sleep(0.2)
        print(await daemon.rows("select id, message::text, handovers, attempts, owner, errors, available_at-now() from outbox"))
        print(await daemon.rows("select id, message::text, reason, errors::text from dead_letters"))
        print(await daemon.rows("select action, details::text from audit_logs"))
        print(await daemon.rows("select recipient, body from notifications"))
        print(daemon.stderr[-1500:])
